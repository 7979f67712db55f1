"""From records to batches with grain: batch k depends on (seed, k) alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grain.python as grain
import numpy as np

from brainldm.data.bids import Record
from brainldm.data.grids import SPACINGS_MM, Grid, training_grid
from brainldm.data.volumes import block_average, read_volume
from brainldm.errors import UserError

SCALINGS = ("minmax", "none")


def load_image(record: Record, grid: Grid, scaling: str = "minmax") -> np.ndarray:
    """The image of `record` on `grid`, float32 [D, H, W] in [0, 1].

    A volume on a finer training grid is averaged over blocks. `scaling` "minmax" maps the volume's own minimum
    and maximum to 0 and 1 (what the paper's data had); "none" takes values that lie in [0, 1] already.
    Raises UserError for another shape or position, or values outside [0, 1] with "none".
    """
    if scaling not in SCALINGS:
        raise UserError(f"config.data.scaling is {scaling!r}; it can be {' or '.join(SCALINGS)}.")
    volume = read_volume(record.path)
    data = volume.data
    for spacing in SPACINGS_MM:
        source = training_grid(spacing)
        factor, rest = divmod(source.shape[0], grid.shape[0])
        if rest == 0 and data.shape == source.shape and np.allclose(volume.affine, source.affine, atol=1e-3):
            data = block_average(data, factor) if factor > 1 else data
            break
    else:
        raise UserError(
            f"{record.path}: shape {'x'.join(map(str, data.shape))} with its first voxel at "
            f"{np.round(volume.affine[:3, 3], 1).tolist()} mm does not fit the training grid "
            f"{'x'.join(map(str, grid.shape))} at {grid.spacing_mm[0]:g} mm (first voxel at "
            f"{grid.affine[:3, 3].tolist()} mm, RAS). Bring the scan to MNI152 space on this grid first, or set "
            "config.data.spacing_mm to the grid that it is on."
        )
    low, high = float(data.min()), float(data.max())
    if scaling == "minmax":
        return ((data - low) / (high - low)).astype(np.float32)
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"{record.path}: intensities run from {low:g} to {high:g}, and config.data.scaling 'none' wants them in "
            "[0, 1]. Set it to 'minmax'."
        )
    return np.clip(data, 0, 1).astype(np.float32)


class VolumeSource:
    """Random access to records as {"image" [D, H, W, 1], "condition" [C], "index"}, kept in memory while they fit.

    `cache_gib` bounds what is kept; the elements do not depend on it.
    """

    def __init__(self, records: Sequence[Record], conditions: np.ndarray, grid: Grid, scaling: str, cache_gib: float):
        self._records, self.conditions = list(records), np.asarray(conditions, np.float32)
        self._grid, self._scaling = grid, scaling
        self._cache: dict[int, np.ndarray] = {}
        self._capacity = int(cache_gib * 2**30 / (4 * np.prod(grid.shape)))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"VolumeSource({len(self)} records)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._cache.get(index)
        if image is None:
            image = load_image(self._records[index], self._grid, self._scaling)
            with self._lock:
                if len(self._cache) < self._capacity:
                    self._cache[index] = image
        return {"image": image[..., None], "condition": self.conditions[index], "index": np.int32(index)}

    def preload(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Read what fits into memory now, so that a scan that cannot be read is found before a run begins."""
        count = min(len(self), self._capacity)
        for index in range(count):
            self[index]
            progress(index + 1)


class LatentSource:
    """Random access to encoded scans as {"latent" [d, h, w, C], "condition" [C], "index"}."""

    def __init__(self, latents: np.ndarray, conditions: np.ndarray):
        self.latents, self.conditions = latents, np.asarray(conditions, np.float32)

    def __len__(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        return f"LatentSource({len(self)} records)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "latent": self.latents[index],
            "condition": self.conditions[index],
            "index": np.int32(index),
        }


def batches(source: Any, *, batch_size: int, seed: int) -> grain.MapDataset:
    """An endless dataset whose element k is the k-th batch: a function of (seed, k) alone.

    Every epoch is a permutation of the source, another one each time.
    """
    # A number of epochs that no run reaches: without one, a length in grain overflows at batch size 1.
    epochs = 2**40 // len(source)
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs).batch(batch_size)


def iterate(dataset: grain.MapDataset, start: int, threads: int = 2):
    """Batches `start`, `start + 1`, ... in order, read ahead by `threads` threads."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1) * 2)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def split(records: Sequence[Record], validation_fraction: float) -> tuple[list[Record], list[Record]]:
    """Training and validation records. All scans of a participant go to the same side.

    The side follows from a hash of the participant's id, so it does not change when others are added. With
    few participants the smallest hash alone is held out, so that neither side is empty.
    Raises UserError when fewer than two participants are there.
    """
    people = {record.participant_id for record in records}
    if len(people) < 2:
        raise UserError(f"The dataset has {len(people)} participant(s); training and validation need at least two.")
    place = {p: int(hashlib.sha256(p.encode()).hexdigest()[:12], 16) / 16**12 for p in people}
    held_out = {p for p in people if place[p] < validation_fraction} or {min(people, key=place.get)}
    if held_out == people:
        held_out.discard(max(people, key=place.get))
    return (
        [record for record in records if record.participant_id not in held_out],
        [record for record in records if record.participant_id in held_out],
    )
