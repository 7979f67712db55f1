"""Structural similarity of 3D volumes, single- and multi-scale.

Wang, Simoncelli & Bovik, "Multiscale structural similarity for image quality assessment", 2003, with the
settings Pinaya et al. (2022) used for brains: Gaussian window of 7 voxels, sigma 1.5, data range 1. The
values agree with MONAI's `MultiScaleSSIMMetric` and `SSIMMetric` to 1e-4.

"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SIGMA = 1.5
K1, K2 = 0.01, 0.03
"""Of the constants that keep luminance and contrast finite, as shares of the data range."""


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
    a, b = as_pair(a, b)
    scales = allowed_scales(scales, scales_for(a.shape, kernel_size))
    return float(ms_ssim_of_arrays(jnp.asarray(a), jnp.asarray(b), kernel_size, float(data_range), scales))


def as_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Two volumes as `as_volume` gives them. Raises ValueError when their shapes differ."""
    a, b = as_volume(a), as_volume(b)
    if a.shape != b.shape:
        raise ValueError(f"the two volumes differ in shape: {a.shape} and {b.shape}")
    return a, b


def allowed_scales(scales: int | None, most: int) -> int:
    """`scales`, or `most` for None. Raises ValueError for more than that, or none."""
    scales = most if scales is None else scales
    if not 1 <= scales <= most:
        raise ValueError(f"{scales} scales asked, a volume of this shape allows 1 to {most}")
    return scales


def as_volume(a) -> np.ndarray:
    """A volume [D, H, W] or [D, H, W, 1] as float32 [D, H, W]. Raises ValueError for another shape."""
    a = np.asarray(a, np.float32)
    if a.ndim == 4 and a.shape[-1] == 1:
        a = a[..., 0]
    if a.ndim != 3:
        raise ValueError(f"a volume is [D, H, W] or [D, H, W, 1], got an array of shape {a.shape}")
    return a


@functools.partial(jax.jit, static_argnames=("kernel_size", "data_range", "scales"))
def ms_ssim_of_arrays(a: jax.Array, b: jax.Array, kernel_size: int, data_range: float, scales: int) -> jax.Array:
    """As `ms_ssim`, of float32 arrays [D, H, W] already checked: a scalar on the device."""
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    result = 1.0
    for scale in range(scales):
        similarity, contrast_structure = _ssim_terms(a, b, kernel_size, data_range)
        # Only the coarsest scale carries the luminance term.
        term = similarity if scale == scales - 1 else contrast_structure
        result *= jnp.maximum(term, 0.0) ** weights[scale] if scales > 1 else term
        a, b = halve(a), halve(b)
    return result


def _ssim_terms(a, b, kernel_size, data_range):
    """Means of SSIM and of its contrast-structure factor over the windows that lie wholly inside."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = smooth(jnp.stack([a, b, a * a, b * b, a * b]), kernel_size)
    variance_a, variance_b = mean_aa - mean_a**2, mean_bb - mean_b**2
    covariance = mean_ab - mean_a * mean_b
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(luminance * contrast_structure), jnp.mean(contrast_structure)


def smooth(stack: jax.Array, kernel_size: int) -> jax.Array:
    """Gaussian means over whole windows of volumes [N, D, H, W]: `kernel_size` - 1 less on every axis."""
    offsets = np.arange(kernel_size) - (kernel_size - 1) / 2
    taps = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    taps = taps / taps.sum()
    for axis in (1, 2, 3):
        length = stack.shape[axis] - kernel_size + 1
        stack = sum(float(tap) * jax.lax.slice_in_dim(stack, i, i + length, axis=axis) for i, tap in enumerate(taps))
    return stack


def halve(volume: jax.Array) -> jax.Array:
    """Mean over blocks of 2x2x2 voxels of [D, H, W]; an odd last plane is left out."""
    d, h, w = (n // 2 for n in volume.shape)
    if min(d, h, w) == 0:
        return volume
    return volume[: 2 * d, : 2 * h, : 2 * w].reshape(d, 2, h, 2, w, 2).mean((1, 3, 5))
