"""How alike the volumes of one dataset are, pair by pair.

Among generated brains a lower mean over pairs means more varied brains; it says something only beside the value among
real brains on the same grid and with the same number of scales.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.evaluation.metrics.gradient_ssim import gradient_ssim_of_arrays, scales_for_gradients
from brainldm.evaluation.metrics.intervals import mean_interval
from brainldm.evaluation.metrics.ssim import as_volume, ms_ssim_of_arrays, scales_for

BATCH = 8


@dataclass(frozen=True)
class PairwiseSimilarity:
    """A similarity over `pairs` pairs of distinct volumes, at `scales` scales: mean, its 95 % interval, and deviation.

    The interval comes from resampling pairs. Pairs that share a volume are not independent, so it is somewhat narrow.
    """

    mean: float
    low: float
    high: float
    sd: float
    pairs: int
    volumes: int
    scales: int


def pairwise_ms_ssim(
    volumes: Sequence[np.ndarray],
    max_pairs: int = 100,
    seed: int = 0,
    *,
    kernel_size: int = 7,
    progress: Callable[[int], None] | None = None,
) -> PairwiseSimilarity:
    """MS-SSIM over pairs of distinct volumes, at as many scales as fit (see `scales_for`).

    Args:
        volumes: N volumes [D, H, W] in [0, 1], one grid; any sequence, read one item at a time.
        max_pairs: the most pairs to compare; all where there are not more.
        seed: of the draw of pairs and of the bootstrap.
        progress: called with the number of pairs just compared.

    Means are NaN below two volumes, the deviation (ddof 1) below two pairs.
    """
    scales = scales_for(as_volume(volumes[0]).shape, kernel_size) if len(volumes) else 0
    compare = _batched(ms_ssim_of_arrays, kernel_size=kernel_size, data_range=1.0, scales=scales)
    return _over_pairs(volumes, compare, max_pairs, seed, scales, progress)


def pairwise_gradient_ssim(
    volumes: Sequence[np.ndarray],
    max_pairs: int = 100,
    seed: int = 0,
    *,
    kernel_size: int = 7,
    multi_scale: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PairwiseSimilarity:
    """4-G-SSIM over pairs of distinct volumes, the earlier one as reference; else as `pairwise_ms_ssim`."""
    scales = 0
    if len(volumes):
        most = scales_for_gradients(as_volume(volumes[0]).shape, kernel_size)
        scales = most if multi_scale else 1
    compare = _batched(gradient_ssim_of_arrays, kernel_size=kernel_size, scales=scales, starred=False, data_range=1.0)
    return _over_pairs(volumes, compare, max_pairs, seed, scales, progress)


def draw_pairs(n: int, max_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Unordered pairs (i < j) of n items: every one when there are at most `max_pairs`, else a draw."""
    total = n * (n - 1) // 2
    if total <= max_pairs:
        ranks = np.arange(total)
    else:
        ranks = np.sort(np.random.default_rng([seed, n]).choice(total, size=max_pairs, replace=False))
    first = np.repeat(np.arange(n), np.arange(n - 1, -1, -1)) if n else np.zeros(0, int)
    starts = np.concatenate([[0], np.cumsum(np.arange(n - 1, -1, -1))]).astype(int)
    return [(int(first[r]), int(first[r] + 1 + r - starts[first[r]])) for r in ranks]


@functools.cache
def _batched(similarity, **settings):
    """`similarity` of arrays [B, D, H, W], compiled once for all datasets."""
    return jax.jit(jax.vmap(functools.partial(similarity, **settings)))


def _over_pairs(volumes, compare, max_pairs, seed, scales, progress) -> PairwiseSimilarity:
    n = len(volumes)
    pairs = draw_pairs(n, max_pairs, seed)
    batch = min(BATCH, len(pairs))
    # One program of one shape: the last batch is filled up with its own last pair.
    values: list[float] = []
    for start in range(0, len(pairs), batch or 1):
        some = pairs[start : start + batch]
        filled = some + some[-1:] * (batch - len(some))
        stacks = (jnp.asarray(np.stack([as_volume(volumes[pair[side]]) for pair in filled])) for side in (0, 1))
        values.extend(np.asarray(compare(*stacks))[: len(some)].tolist())
        if progress is not None:
            progress(len(some))
    found = mean_interval(np.array(values), seed)
    return PairwiseSimilarity(
        mean=found.value,
        low=found.low,
        high=found.high,
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        pairs=len(values),
        volumes=n,
        scales=scales,
    )
