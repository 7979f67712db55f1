"""The adversarial baselines as stages: what they compare, what they show, what is planned of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from brainldm.data.pipeline import VolumeSource
from brainldm.parallel.mesh import BATCH, VOLUMES, num_batch_shards, process_shard, replicated, shard_batch
from brainldm.parallel.sharding import abstract_like
from brainldm.reports.mosaics import mosaic
from brainldm.training import gan, vae_gan
from brainldm.training.inputs import padded_batches
from brainldm.training.stage import IMAGES, Eval, EvalResult, Program, array_shape, whole_batches
from brainldm.training.stage_volumes import VolumeStage

_VALIDATED = 4
"""Held-out volumes that a device sees at once; three networks look at them."""


class LsganStage(VolumeStage):
    """Generator against discriminator on volumes [B, D, H, W, 1], by least squares. Only the batch is split: the sides
    of the deepest level have few divisors."""

    name = "lsgan"
    program_names = ("train", "generate")
    splits_volumes = False
    loss: ClassVar[Callable] = staticmethod(gan.least_squares)

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        super().__init__(config, mesh)
        self.functions = gan.build(config, self.loss, self.sharding)

    # state and step

    def init(self) -> Any:
        return self.functions.init(jax.random.key(self.config.seed))

    def state_shapes(self) -> Any:
        return jax.eval_shape(self.init)

    def train_step(self, state: Any, batch: dict, frozen: Any) -> tuple[Any, dict[str, jax.Array]]:
        return self.functions.train_step(state, batch, frozen)

    # evals

    def evals(self, validation: VolumeSource) -> dict[str, Eval]:
        every = self.config.every
        return {
            "validation": Eval(every.validate, partial(self.validate, validation)),
            "images": Eval(every.images, partial(self.images, validation)),
        }

    def validate(self, source: VolumeSource, state: Any) -> EvalResult:
        """The losses over all held-out scans, each with a sample whose vector depends on the number of the scan."""
        size, found = num_batch_shards(self.mesh) * max(1, min(_VALIDATED, len(source))), {}
        for batch, real in padded_batches(source, size, self.config.data.threads, process_shard(self.mesh)):
            arrays = shard_batch({key: batch[key] for key in ("image", "index")}, self.mesh)
            for name, values in self._terms(state, arrays).items():
                found.setdefault(name, []).extend(np.asarray(values, np.float64)[:real])
        return EvalResult({name: float(np.mean(values)) for name, values in found.items()})

    def images(self, source: VolumeSource, state: Any) -> EvalResult:
        """Some held-out scans beside samples and, of a baseline with an encoder, beside their reconstructions."""
        rows = whole_batches(IMAGES, self.mesh)
        batch, real = next(padded_batches(source, rows, self.config.data.threads, process_shard(self.mesh)))
        shown = min(real, IMAGES)
        arrays = shard_batch(batch["image"], self.mesh)
        panels = self._shown(state.params, arrays)
        titles = [title for title in ("held-out scans", "reconstructed", "generated") if title in panels]
        return EvalResult(images={"samples": mosaic([(t, list(np.asarray(panels[t])[:shown])) for t in titles])})

    def _vectors(self, numbers: jax.Array) -> jax.Array:
        key, shape = jax.random.key(self.config.seed), (self.config.model.latent_size,)
        return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), shape))(numbers)

    @cached_property
    def _terms(self):
        @partial(jax.jit, out_shardings=replicated(self.mesh))
        def terms(state, batch):
            return self.functions.terms(state, batch["image"], self._vectors(batch["index"]))

        return terms

    @cached_property
    def _shown(self):
        @partial(jax.jit, out_shardings=replicated(self.mesh))
        def shown(params, image):
            panels = {"held-out scans": image}
            if self.functions.reconstruct is not None:
                panels["reconstructed"] = self.functions.reconstruct(params, image)
            panels["generated"] = self.functions.sample(params, self._vectors(jnp.arange(image.shape[0])))
            return {title: volumes[:IMAGES, ..., 0] for title, volumes in panels.items()}

        return shown

    # programs, for planning

    def train_program(self, batch: int | None = None) -> Program:
        batch = batch or self.config.batch_size
        image = array_shape((batch, *self.volume_shape, 1), self.mesh, VOLUMES)
        return self.step_program({"image": image}, None, batch)

    def generate_program(self, batch: int | None = None) -> Program:
        """From vectors to volumes."""
        batch = batch or num_batch_shards(self.mesh)
        params = {"generator": self.state_shapes().params["generator"]}
        params = abstract_like(params, replicated(self.mesh))
        z = array_shape((batch, self.config.model.latent_size), self.mesh, BATCH)
        return Program(self.functions.sample, (params, z), batch, params)


class VaeGanStage(LsganStage):
    """The same with an encoder, by the losses of Larsen et al. 2016."""

    name = "vae_gan"
    loss = staticmethod(vae_gan.losses)
