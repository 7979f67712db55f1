"""From scans to batches with grain: batch k depends on (seed, k) alone.

Threads read ahead, not processes: reading, unpacking and resampling run outside Python's lock, and processes beside
JAX would each take memory of the accelerator.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np

from brainldm.datasets.scans import Scan
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import Grid
from brainldm.volumes.on_grid import read_on_grid

SCALINGS = ("minmax", "none")


def load_image(scan: Scan, grid: Grid, scaling: str = "minmax", cache_dir: str | Path = "") -> np.ndarray:
    """The image of `scan` on `grid`, float32 [D, H, W] in [0, 1].

    A volume on a finer training grid is averaged over blocks. `scaling` "minmax" maps the volume's own minimum
    and maximum to 0 and 1 (what the paper's data had); "none" takes values that lie in [0, 1] already.
    `cache_dir` keeps unpacked copies of compressed files; the image does not depend on it.
    Raises UserError for another shape or position, or values outside [0, 1] with "none".
    """
    if scaling not in SCALINGS:
        raise UserError(f"config.data.scaling is {scaling!r}; it can be {' or '.join(SCALINGS)}.")
    return scale_intensities(read_on_grid(scan.path, grid, cache_dir), scaling, scan.path)


def scale_intensities(data: np.ndarray, scaling: str, where: str | Path) -> np.ndarray:
    """A volume [D, H, W] in [0, 1], float32 in C order, as `load_image` has it; `where` is what an error names.

    Raises UserError for values outside [0, 1] with "none".
    """
    low, high = float(data.min()), float(data.max())
    if scaling == "minmax":
        image = np.subtract(data, low, dtype=np.float32, order="C")
        image /= high - low
        return image
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"{where}: intensities run from {low:g} to {high:g}, and config.data.scaling 'none' wants them in "
            "[0, 1]. Set it to 'minmax'."
        )
    return np.ascontiguousarray(np.clip(data, 0, 1), np.float32)


class VolumeSource:
    """Random access to scans as {"image" [D, H, W, 1], "condition" [C], "index"}, kept in memory while they fit.

    `cache_gib` bounds what is kept, `cache_dir` holds unpacked copies of compressed files; the elements depend on
    neither.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        conditions: np.ndarray,
        grid: Grid,
        scaling: str,
        cache_gib: float,
        cache_dir: str | Path = "",
    ):
        self.scans, self.conditions = list(scans), np.asarray(conditions, np.float32)
        self.grid, self._scaling, self._cache_dir = grid, scaling, cache_dir
        self._cache: dict[int, np.ndarray] = {}
        self._capacity = int(cache_gib * 2**30 / (4 * math.prod(grid.shape)))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.scans)

    def __repr__(self) -> str:
        return f"VolumeSource({len(self)} scans)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.image(index)[..., None],
            "condition": self.conditions[index],
            "index": np.int32(index),
        }

    def image(self, index: int) -> np.ndarray:
        """The image of a scan, [D, H, W]; not to be written to."""
        image = self._cache.get(index)
        if image is None:
            image = self.load(index)
            with self._lock:
                if len(self._cache) < self._capacity:
                    self._cache[index] = image
        return image

    def load(self, index: int) -> np.ndarray:
        """The image of a scan, [D, H, W], read from its file."""
        return load_image(self.scans[index], self.grid, self._scaling, self._cache_dir)

    @property
    def fits(self) -> bool:
        """Whether all of it can be kept in memory."""
        return len(self) <= self._capacity

    @property
    def unpacks_in_every_epoch(self) -> int:
        """How many compressed files are unpacked again whenever they are drawn."""
        if self._cache_dir:
            return 0
        compressed = sum(scan.path.name.endswith(".gz") for scan in self.scans)
        return max(0, compressed - self._capacity)

    def preload(self, threads: int = 1, progress: Callable[[int], None] = lambda done: None) -> None:
        """Read what fits into memory now, so that a scan that cannot be read is found before a run begins."""
        count = min(len(self), self._capacity)
        for done, _ in enumerate(read_ahead(self.image, range(count), threads, threads), 1):
            progress(done)


class LatentSource:
    """Random access to encoded scans as {"latent" [d, h, w, C], "condition" [C], "index"}.

    `latents` is an array [N, d, h, w, C] or anything else that gives latent i as `latents[i]`.
    """

    def __init__(self, latents: Any, conditions: np.ndarray):
        self.latents, self.conditions = latents, np.asarray(conditions, np.float32)

    def __len__(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        return f"LatentSource({len(self)} scans)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "latent": self.latents[index],
            "condition": self.conditions[index],
            "index": np.int32(index),
        }


def batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """An endless dataset whose element k is the k-th batch: a function of (seed, k) alone.

    Every epoch is a permutation of the source, another one each time. `transform(element, rng)` changes elements at
    random; its generator depends on the seed and on the element's place in the whole sequence. With several
    processes each gets `batch_size` / `process_count` rows of every batch: those of process 0, 1, ... one after
    the other are the batch of a single process, row by row.
    Raises UserError when a batch cannot be shared out evenly.
    """
    rows, rest = divmod(batch_size, process_count)
    if rest:
        raise UserError(
            f"config.batch_size {batch_size} cannot be shared out evenly among {process_count} processes. The next "
            f"that can is {(rows + 1) * process_count}."
        )
    # A number of epochs that no run reaches: without one, a length in grain overflows at batch size 1.
    epochs = 2**40 // len(source)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    if transform is not None:
        # Before the rows are shared out: the generator then belongs to the place in the whole sequence.
        dataset = dataset.random_map(transform, seed=seed)
    return dataset.batch(rows)[process_index::process_count]


def iterate(dataset: grain.MapDataset, start: int, threads: int = 2, prefetch: int = 0):
    """Batches `start`, `start + 1`, ... in order, read ahead by `threads` threads.

    `prefetch` batches wait in memory at most; 0 stands for two per thread.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch or 2 * threads, threads, 1))
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def read_ahead(function: Callable[[Any], Any], items: Sequence[Any], threads: int, ahead: int) -> Iterator[Any]:
    """`function` of every item, in order, while threads work on the `ahead` next ones (0 threads: none)."""
    if threads < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
