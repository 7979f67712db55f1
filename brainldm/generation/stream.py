"""Brains in memory: drawn and not stored, or read back from a generated dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainldm.data.pipeline import VolumeSource, scale_intensities
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.covariates import Covariates
from brainldm.datasets.scans import Scan, scan_ids
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.conditions import check_conditions, draw_conditions
from brainldm.generation.job import JOB, Row, read_job
from brainldm.generation.manifest import read_brain, read_manifests
from brainldm.generation.sampler import make_sampler
from brainldm.runtime.errors import UserError
from brainldm.runtime.shards import WHOLE, Shard, check_shard
from brainldm.volumes.grids import Grid
from brainldm.volumes.on_grid import on_grid
from brainldm.weights.gan_folder import GanModel
from brainldm.weights.model_folder import Model


class Brain(NamedTuple):
    """Number `index` of a seed, its conditions, and its volume, float32 [D, H, W] in [0, 1]."""

    index: int
    conditions: Row
    volume: np.ndarray


def stream(
    model: Model | GanModel,
    *,
    seed: int = 0,
    fixed: Mapping[str, str] | None = None,
    batch_size: int = 4,
    sampling: Sampling | None = None,
    shard: Shard = WHOLE,
    start: int = 0,
) -> Iterator[Brain]:
    """New brains without end, none of them stored: those that `generate` with this seed and batch size would write.

    `fixed` holds what is asked of conditions as `draw_conditions` takes it; the others are drawn as the people of the
    model have them. `shard` (i, n) gets each n-th batch, so that readers share the brains; `start` is the first index,
    a multiple of the batch size, to go on from. Raises UserError for a model or conditions that cannot be.
    """
    check_shard(shard)
    covariates = model.spec.covariates
    sample = make_sampler(model, sampling or model.spec.sampling, batch_size=batch_size)
    batch = start // batch_size + shard[0] - 1
    while True:
        indices = np.arange(batch * batch_size, (batch + 1) * batch_size)
        rows = draw_conditions(covariates, batch_size, seed, fixed or {}, model.spec.demography, first=int(indices[0]))
        for brain in zip(indices.tolist(), rows, sample(seed, indices, covariates.encode(rows)), strict=True):
            yield Brain(*brain)
        batch += shard[1]


def draw(
    model: Model | GanModel,
    rows: Sequence[Row],
    *,
    seed: int = 0,
    batch_size: int = 4,
    sampling: Sampling | None = None,
    extrapolate: bool = False,
) -> np.ndarray:
    """The brains of rows of conditions, float32 [N, D, H, W] in [0, 1]; brain k is number k of the seed.

    Raises UserError for conditions outside what the model was trained on, unless `extrapolate`.
    """
    covariates = model.spec.covariates
    check_conditions(rows, covariates, extrapolate, model.spec.takes_subsets)
    sample = make_sampler(model, sampling or model.spec.sampling, batch_size=batch_size)
    conditions = covariates.encode(rows)
    parts = [np.arange(k, min(k + batch_size, len(rows))) for k in range(0, len(rows), batch_size)]
    return np.concatenate([sample(seed, part, conditions[part]) for part in parts])


def generated_source(root: str | Path, model: Model, cache_gib: float = 1.0) -> VolumeSource:
    """A generated dataset as a random access source for grain: {"image" [D, H, W, 1], "condition" [C], "index"}.

    `grain.MapDataset.source(generated_source(...))` makes batches of it. Images are as written, in [0, 1], and at most
    `cache_gib` of them are kept in memory. A dataset in tars is read where it lies. Raises UserError for a dataset that
    cannot be read, or of another grid.
    """
    covariates = model.spec.covariates
    if (Path(root) / JOB).is_file() and read_job(root).archive:
        return _ArchivedSource(Path(root), covariates, model.spec.grid, cache_gib)
    scans = list(read_dataset(root, covariates))
    conditions = covariates.encode([scan.covariates for scan in scans])
    return VolumeSource(scans, conditions, model.spec.grid, "none", cache_gib)


class _ArchivedSource(VolumeSource):
    """The brains in the tars of a generated dataset, in the order of their names."""

    def __init__(self, root: Path, covariates: Covariates, grid: Grid, cache_gib: float):
        self._root, self._entries = root, sorted(read_manifests(root), key=lambda entry: entry["id"])
        if not self._entries:
            raise UserError(f"{root}: no brain in it yet. Run the `brainldm generate` that began it.")
        conditions = [covariates.parse(entry["conditions"], f"{root}, {entry['id']}") for entry in self._entries]
        scans = [
            Scan(*scan_ids(entry["id"]), root / entry["file"], row)
            for entry, row in zip(self._entries, conditions, strict=True)
        ]
        super().__init__(scans, covariates.encode(conditions), grid, "none", cache_gib)

    def load(self, index: int) -> np.ndarray:
        path = self.scans[index].path
        return scale_intensities(on_grid(read_brain(self._root, self._entries[index]), self.grid, path), "none", path)
