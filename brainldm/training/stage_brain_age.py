"""The brain-age network as a stage: held-out ages against those that it tells."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from brainldm.data.pipeline import VolumeSource
from brainldm.evaluation.metrics.conditioning import agreement_stats
from brainldm.parallel.distributed import is_primary
from brainldm.parallel.mesh import BATCH, VOLUMES, num_batch_shards, process_shard, replicated, shard_batch
from brainldm.runtime.console import log
from brainldm.training import brain_age
from brainldm.training.inputs import padded_batches
from brainldm.training.stage import Eval, EvalResult, Program, array_shape
from brainldm.training.stage_volumes import VolumeStage

_VALIDATED = 8
"""Held-out volumes that a device sees at once."""


class BrainAgeStage(VolumeStage):
    """The mean absolute error of ages in years, from volumes [B, D, H, W, 1]. Only the batch is split: blocks leave out
    odd voxels, so that halves of a volume are not halves of what they make of it."""

    name = "brain_age"
    program_names = ("train",)
    splits_volumes = False

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        super().__init__(config, mesh)
        self._init, self._train_step, self._predict = brain_age.build(config, self.sharding)

    def init(self) -> Any:
        return self._init(jax.random.key(self.config.seed))

    def state_shapes(self) -> Any:
        return jax.eval_shape(self.init)

    def train_step(self, state: Any, batch: dict, frozen: Any) -> tuple[Any, dict[str, jax.Array]]:
        return self._train_step(state, batch, frozen)

    def evals(self, validation: VolumeSource) -> dict[str, Eval]:
        return {"validation": Eval(self.config.every.validate, partial(self.validate, validation))}

    def validate(self, source: VolumeSource, state: Any) -> EvalResult:
        """Ages told of all held-out scans against theirs: mean absolute error ("loss" too), r and slope where they are
        determined."""
        size, told = num_batch_shards(self.mesh) * max(1, min(_VALIDATED, len(source))), []
        for batch, real in padded_batches(source, size, self.config.data.threads, process_shard(self.mesh)):
            told.extend(np.asarray(self._ages(state, shard_batch(batch["image"], self.mesh)), np.float64)[:real])
        low, high = brain_age.age_range(self.config)
        ages = low + (high - low) * source.conditions[:, 0].astype(np.float64)
        error = float(np.mean(np.abs(told - ages)))
        found = agreement_stats(ages, told)
        if is_primary():
            log(f"held-out ages: mean absolute error {error:.2f} years, r {found.r} (n = {len(ages)})")
        figures = {"loss": error, "mae": error, "r": found.r.value, "slope": found.slope.value}
        return EvalResult({name: value for name, value in figures.items() if np.isfinite(value)})

    @cached_property
    def _ages(self):
        return jax.jit(self._predict, out_shardings=replicated(self.mesh))

    def train_program(self, batch: int | None = None) -> Program:
        batch = batch or self.config.batch_size
        image = array_shape((batch, *self.volume_shape, 1), self.mesh, VOLUMES)
        return self.step_program({"image": image, "condition": array_shape((batch, 1), self.mesh, BATCH)}, None, batch)
