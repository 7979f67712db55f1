"""Stage one: the autoencoder learns to reconstruct volumes, which devices may share."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from brainldm.data.codec import Codec
from brainldm.data.pipeline import VolumeSource
from brainldm.evaluation.fidelity import SCANS, fidelity, nearer_than_a_rescan
from brainldm.models.build import autoencoder_halvings
from brainldm.parallel.distributed import is_primary
from brainldm.parallel.mesh import VOLUMES, check_volume, process_shard, replicated, shard_batch
from brainldm.parallel.sharding import abstract_like
from brainldm.reports.mosaics import mosaic
from brainldm.runtime.console import log
from brainldm.training import autoencoder
from brainldm.training.init_from import InitFrom, said_of_intensities, said_of_latents
from brainldm.training.inputs import padded_batches
from brainldm.training.stage import IMAGES, Eval, EvalResult, LatentStage, Program, array_shape, whole_batches
from brainldm.training.stage_volumes import VolumeStage
from brainldm.volumes.grids import training_grid
from brainldm.weights.perceptual import load_perceptual, perceptual_distance_of, perceptual_shapes


def volume_halvings(config: ml_collections.ConfigDict) -> int:
    """How many times the networks of a training run halve each side of a volume."""
    return max(autoencoder_halvings(config.model.to_dict()), config.discriminator.num_layers)


class AutoencoderStage(VolumeStage, LatentStage):
    """L1 + KL + perceptual + patch-adversarial loss on volumes [B, D, H, W, 1]."""

    name = "autoencoder"
    program_names = ("train", "encode", "decode")
    splits_volumes = True

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        super().__init__(config, mesh)
        perceptual = perceptual_distance_of(config.loss.perceptual, config.loss.perceptual_ratio)
        self._said_near = False
        self._init, self._train_step, self._reconstruct = autoencoder.build(config, perceptual, self.sharding)

    def check(self) -> None:
        super().check()
        self._check_volume()

    def _check_volume(self) -> None:
        check_volume(self.volume_shape, volume_halvings(self.config), self.mesh)

    # state and step

    def state_shapes(self) -> Any:
        return autoencoder.state_shapes(self.config)

    def init(self) -> Any:
        return self._init(jax.random.key(self.config.seed), jnp.zeros((1, *self.volume_shape, 1)))

    def train_step(self, state: Any, batch: dict, frozen: Any) -> tuple[Any, dict[str, jax.Array]]:
        return self._train_step(state, batch, frozen)

    # data and evals

    def frozen(self) -> Any:
        loss = self.config.loss
        return self.sharding.put_params(load_perceptual(loss.perceptual, tuple(loss.perceptual_files)))

    def init_from(self, workdir: Path) -> InitFrom:
        shapes = self.state_shapes().params
        return InitFrom(self.config, workdir, "autoencoder", self.config.model.to_dict(), shapes)

    def compare(self, init_from: InitFrom, validation: VolumeSource) -> None:
        rows, shard = whole_batches(IMAGES, self.mesh), process_shard(self.mesh)
        batch, _ = next(padded_batches(validation, rows, self.config.data.threads, shard))

        @partial(jax.jit, out_shardings=replicated(self.mesh))
        def look(params, image):
            reconstruction, mu, _ = self._reconstruct(params, image)
            head = image > 0.05
            means = (jnp.mean(array, where=head) for array in (image, reconstruction, jnp.abs(reconstruction - image)))
            return *means, jnp.std(mu)

        params = self.sharding.put_params(init_from.point.params)
        scans, again, error, deviation = map(float, look(params, shard_batch(batch["image"], self.mesh)))
        deviation *= init_from.point.model.spec.latent_scale
        figures = {"intensity": scans, "intensity_reconstructed": again, "latents_sd": deviation}
        init_from.compare(figures, said_of_intensities(scans, again, error), said_of_latents(deviation))

    def evals(self, validation: VolumeSource) -> dict[str, Eval]:
        every = self.config.every
        return {
            "validation": Eval(every.validate, partial(self.validate, validation)),
            "fidelity": Eval(every.fidelity, partial(self.fidelity, validation)),
            "images": Eval(every.images, partial(self.reconstructions, validation)),
        }

    def validate(self, source: VolumeSource, state: Any) -> EvalResult:
        """Loss, L1, KL and PSNR over all held-out scans, by the posterior's mean."""
        found: dict[str, list] = {"l1": [], "mse": [], "kl": []}
        shard, threads = process_shard(self.mesh), self.config.data.threads
        for batch, real in padded_batches(source, self.codec.batch_size(), threads, shard):
            values = self._errors(state.params, shard_batch(batch["image"], self.mesh))
            for name, value in values.items():
                found[name].extend(np.asarray(value, np.float64)[:real])
        l1, kl = np.mean(found["l1"]), np.mean(found["kl"])
        loss = l1 + self.config.loss.kl_weight * kl
        return EvalResult({"loss": loss, "l1": l1, "kl": kl, "psnr": float(np.mean(-10 * np.log10(found["mse"])))})

    def fidelity(self, source: VolumeSource, state: Any) -> EvalResult:
        """Similarity, sharpness and ventricles of some held-out reconstructions beside the scans.

        Says once when they are nearer to the scans than a second scan would be.
        """
        images, outputs = [], []
        rows, shard = whole_batches(IMAGES, self.mesh), process_shard(self.mesh)
        for batch, real in padded_batches(source, rows, self.config.data.threads, shard):
            image, output = map(np.asarray, self._pairs(state.params, shard_batch(batch["image"], self.mesh)))
            images.extend(image[: min(real, SCANS - len(images))])
            outputs.extend(output[: min(real, SCANS - len(outputs))])
            if len(images) >= SCANS:
                break
        spacing = self.config.data.spacing_mm
        figures = fidelity(images, outputs, training_grid(spacing))
        near = nearer_than_a_rescan(figures, spacing)
        if near and not self._said_near and is_primary():
            log(near)
        self._said_near = self._said_near or bool(near)
        return EvalResult(figures)

    def reconstructions(self, source: VolumeSource, state: Any) -> EvalResult:
        """Some held-out scans beside their reconstructions."""
        rows, shard = whole_batches(IMAGES, self.mesh), process_shard(self.mesh)
        batch, real = next(padded_batches(source, rows, self.config.data.threads, shard))
        image, output = map(np.asarray, self._pairs(state.params, shard_batch(batch["image"], self.mesh)))
        shown = min(real, IMAGES)
        panels = [("held-out scans", list(image[:shown])), ("reconstructed", list(output[:shown]))]
        return EvalResult(images={"reconstructions": mosaic(panels)})

    @cached_property
    def _errors(self):
        @partial(jax.jit, out_shardings=replicated(self.mesh))
        def errors(params, image):
            reconstruction, mu, sigma = self._reconstruct(params, image)
            axes = tuple(range(1, image.ndim))
            clipped = jnp.clip(reconstruction, 0, 1)
            return {
                "l1": jnp.mean(jnp.abs(reconstruction - image), axes),
                "mse": jnp.mean(jnp.square(clipped - image), axes),
                "kl": jax.vmap(lambda m, s: autoencoder.kl_divergence(m[None], s[None]))(mu, sigma),
            }

        return errors

    @cached_property
    def _pairs(self):
        @partial(jax.jit, out_shardings=replicated(self.mesh))
        def pairs(params, image):
            reconstruction, _, _ = self._reconstruct(params, image)
            return image[:IMAGES, ..., 0], jnp.clip(reconstruction[:IMAGES, ..., 0], 0, 1)

        return pairs

    # programs, for planning

    @cached_property
    def codec(self) -> Codec:
        return Codec(self.config.model.to_dict(), self.config.data.spacing_mm, self.volume_mesh)

    def train_program(self, batch: int | None = None) -> Program:
        self._check_volume()
        batch = batch or self.config.batch_size
        frozen = perceptual_shapes(self.config.loss.perceptual)
        if frozen is not None:
            frozen = abstract_like(frozen, self.sharding.params(frozen))
        image = array_shape((batch, *self.volume_shape, 1), self.mesh, VOLUMES)
        return self.step_program({"image": image}, frozen, batch)
