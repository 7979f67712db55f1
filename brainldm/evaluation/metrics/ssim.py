"""Structural similarity of 3D volumes, single- and multi-scale.

Wang, Simoncelli & Bovik, "Multiscale structural similarity for image quality assessment", 2003, with the
settings Pinaya et al. (2022) used for brains: Gaussian window of 7 voxels, sigma 1.5, data range 1. The
values agree with MONAI's `MultiScaleSSIMMetric` and `SSIMMetric` to 1e-4.

Among generated brains a lower mean over pairs means more varied brains; it says something only beside the
value among real brains on the same grid and with the same number of scales.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True)
class PairwiseSimilarity:
    """Mean and standard deviation of MS-SSIM over `pairs` pairs of distinct volumes, at `scales` scales."""

    mean: float
    sd: float
    pairs: int
    volumes: int
    scales: int


def scales_for(shape: Sequence[int], kernel_size: int = 7) -> int:
    """Number of scales (1 to 5) at which the window still fits every axis of `shape`.

    A window of k voxels needs `side // 2**(scales - 1) > k - 1`, the rule of the reference implementation.

    Raises:
        ValueError: when the window does not even fit the volume itself.
    """
    fitting = [s for s in range(1, len(SCALE_WEIGHTS) + 1) if min(shape) // 2 ** (s - 1) > kernel_size - 1]
    if not fitting:
        raise ValueError(f"a window of {kernel_size} voxels does not fit a volume of shape {tuple(shape)}")
    return fitting[-1]


def ssim(a, b, kernel_size: int = 7, data_range: float = 1.0) -> float:
    """Mean structural similarity of two volumes [D, H, W] (or [D, H, W, 1]) over all whole windows."""
    return ms_ssim(a, b, kernel_size, data_range, scales=1)


def ms_ssim(a, b, kernel_size: int = 7, data_range: float = 1.0, scales: int | None = None) -> float:
    """Multi-scale structural similarity of two volumes [D, H, W] (or [D, H, W, 1]).

    `scales` None takes as many as fit, at most five (see `scales_for`): five at 160x224x160, four at
    80x112x80, three at 40x56x40. With fewer than five the weights of those used are scaled to sum to one.

    Raises:
        ValueError: when the shapes differ or are not 3D, or when the window does not fit at some scale.
    """
    a, b = _volume(a), _volume(b)
    if a.shape != b.shape:
        raise ValueError(f"the two volumes differ in shape: {a.shape} and {b.shape}")
    most = scales_for(a.shape, kernel_size)
    scales = most if scales is None else scales
    if not 1 <= scales <= most:
        raise ValueError(f"{scales} scales asked, a volume of shape {a.shape} allows 1 to {most}")
    return float(_ms_ssim(jnp.asarray(a), jnp.asarray(b), kernel_size, float(data_range), scales))


def pairwise_ms_ssim(
    volumes: Sequence[np.ndarray], max_pairs: int = 100, seed: int = 0, *, kernel_size: int = 7
) -> PairwiseSimilarity:
    """MS-SSIM over pairs of distinct volumes: all pairs, or `max_pairs` of them drawn without repetition.

    Args:
        volumes: N volumes [D, H, W] in [0, 1], one grid; any sequence, read one item at a time.
        max_pairs: the most pairs to compare.
        seed: of the draw; the same seed, N and max_pairs give the same pairs.

    Returns mean and standard deviation (ddof 1); NaN mean below two volumes, NaN sd below two pairs.
    """
    n = len(volumes)
    pairs = draw_pairs(n, max_pairs, seed)
    scales = scales_for(_volume(volumes[0]).shape, kernel_size) if n else 0
    values = np.array([ms_ssim(volumes[i], volumes[j], kernel_size, scales=scales) for i, j in pairs])
    return PairwiseSimilarity(
        mean=float(values.mean()) if len(values) else math.nan,
        sd=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        pairs=len(values),
        volumes=n,
        scales=scales,
    )


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


def _volume(a) -> np.ndarray:
    a = np.asarray(a, np.float32)
    if a.ndim == 4 and a.shape[-1] == 1:
        a = a[..., 0]
    if a.ndim != 3:
        raise ValueError(f"a volume is [D, H, W] or [D, H, W, 1], got an array of shape {a.shape}")
    return a


@functools.partial(jax.jit, static_argnames=("kernel_size", "data_range", "scales"))
def _ms_ssim(a, b, kernel_size, data_range, scales):
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    result = 1.0
    for scale in range(scales):
        similarity, contrast_structure = _ssim_terms(a, b, kernel_size, data_range)
        # Only the coarsest scale carries the luminance term.
        term = similarity if scale == scales - 1 else contrast_structure
        result *= jnp.maximum(term, 0.0) ** weights[scale] if scales > 1 else term
        a, b = _halve(a), _halve(b)
    return result


def _ssim_terms(a, b, kernel_size, data_range):
    """Means of SSIM and of its contrast-structure factor over the windows that lie wholly inside."""
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _smooth(jnp.stack([a, b, a * a, b * b, a * b]), kernel_size)
    variance_a, variance_b = mean_aa - mean_a**2, mean_bb - mean_b**2
    covariance = mean_ab - mean_a * mean_b
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(luminance * contrast_structure), jnp.mean(contrast_structure)


def _smooth(stack, kernel_size):
    """Separable Gaussian over the last three axes, whole windows only."""
    offsets = np.arange(kernel_size) - (kernel_size - 1) / 2
    taps = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    taps = taps / taps.sum()
    for axis in (1, 2, 3):
        length = stack.shape[axis] - kernel_size + 1
        stack = sum(float(tap) * jax.lax.slice_in_dim(stack, i, i + length, axis=axis) for i, tap in enumerate(taps))
    return stack


def _halve(volume):
    """Mean over blocks of 2x2x2 voxels; an odd last plane is left out."""
    d, h, w = (n // 2 for n in volume.shape)
    if min(d, h, w) == 0:
        return volume
    return volume[: 2 * d, : 2 * h, : 2 * w].reshape(d, 2, h, 2, w, 2).mean((1, 3, 5))
