"""Four-component gradient structural similarity of 3D volumes (4-G-SSIM), single- and multi-scale.

Luminance is compared on the intensities, contrast and structure on gradient magnitudes (Chen et al. 2006), and the
result is averaged within four regions of the reference before it is averaged over them (Li & Bovik 2010): edges that
stay, edges that change, smooth parts and texture. The starred form (Rouse & Hemami 2008) counts a term as 1 where its
denominator is 0. Pinaya et al. (2022) report it as 4-G-R-SSIM, 0.3909 among real brains; on other real brains the
single-scale form is of that order and the multi-scale one is not (0.33 and 0.60). The measure is not symmetric: the
regions are those of the first volume.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.evaluation.metrics.ssim import K1, K2, SCALE_WEIGHTS, allowed_scales, as_pair, halve, smooth

_STRONG, _WEAK = 0.12, 0.06  # of the reference's largest gradient: an edge above, smooth below
_FLOOR = 1e-5  # keeps standard deviations and means over a region finite


def scales_for_gradients(shape, kernel_size: int = 7) -> int:
    """Number of scales (1 to 5) at which the window still fits the gradients of a volume of `shape`.

    Raises:
        ValueError: when it does not fit the volume itself.
    """
    fitting = [s for s in range(1, len(SCALE_WEIGHTS) + 1) if min(shape) // 2 ** (s - 1) >= kernel_size + 2]
    if not fitting:
        raise ValueError(f"a window of {kernel_size} voxels does not fit the gradients of a volume of shape {shape}")
    return fitting[-1]


def gradient_ssim(
    reference, other, kernel_size: int = 7, *, scales: int = 1, starred: bool = False, data_range: float = 1.0
) -> float:
    """4-G-SSIM of two volumes [D, H, W] (or [D, H, W, 1]): `scales` 1 is what the paper's figures are like.

    With several scales, contrast and structure of all and luminance of the last are multiplied with the weights of
    MS-SSIM, scaled to sum to one where fewer than five are used.

    Raises:
        ValueError: when the shapes differ or are not 3D, or when the window does not fit at some scale.
    """
    reference, other = as_pair(reference, other)
    scales = allowed_scales(scales, scales_for_gradients(reference.shape, kernel_size))
    arrays = jnp.asarray(reference), jnp.asarray(other)
    return float(gradient_ssim_of_arrays(*arrays, kernel_size, scales, starred, float(data_range)))


@functools.partial(jax.jit, static_argnames=("kernel_size", "scales", "starred", "data_range"))
def gradient_ssim_of_arrays(
    x: jax.Array, y: jax.Array, kernel_size: int, scales: int, starred: bool, data_range: float
) -> jax.Array:
    """As `gradient_ssim`, of float32 arrays [D, H, W] already checked: a scalar on the device."""
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    result = 1.0
    for scale in range(scales):
        similarity, contrast_structure = _terms(x, y, kernel_size, starred, data_range)
        term = jnp.maximum(similarity if scale == scales - 1 else contrast_structure, 0.0)
        result *= term ** weights[scale]
        x, y = halve(x), halve(y)
    return result


def _terms(x, y, kernel_size, starred, data_range):
    """Means over the four regions of luminance * contrast * structure, and of contrast * structure."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    c3 = c2 / 2
    mean_x, mean_y = smooth(jnp.stack([x, y]), kernel_size)[:, 1:-1, 1:-1, 1:-1]
    luminance = _ratio(2 * mean_x * mean_y + c1, mean_x**2 + mean_y**2 + c1, starred)

    gx, gy = _gradient(x), _gradient(y)
    mean_gx, mean_gy, mean_xx, mean_yy, mean_xy = smooth(jnp.stack([gx, gy, gx * gx, gy * gy, gx * gy]), kernel_size)
    variance_x, variance_y = mean_xx - mean_gx**2, mean_yy - mean_gy**2
    # The reference implementation has the floor in the deviations and not in the variances.
    sigma_x = jnp.sqrt(jnp.maximum(variance_x + _FLOOR * (mean_xx + mean_gx**2) / 2, 0))
    sigma_y = jnp.sqrt(jnp.maximum(variance_y + _FLOOR * (mean_yy + mean_gy**2) / 2, 0))
    contrast = _ratio(2 * sigma_x * sigma_y + c2, variance_x + variance_y + c2, starred)
    structure = (mean_xy - mean_gx * mean_gy + c3) / (sigma_x * sigma_y + c3)
    if starred:
        flat_x, flat_y = sigma_x == 0, sigma_y == 0
        structure = jnp.where(flat_x & flat_y, 1.0, jnp.where(flat_x | flat_y, 0.0, structure))

    regions = _regions(gx, gy, (kernel_size - 1) // 2)
    return _regional(luminance * contrast * structure, regions), _regional(contrast * structure, regions)


def _ratio(numerator, denominator, starred):
    if not starred:
        return numerator / denominator
    return jnp.where(denominator == 0, 1.0, numerator / jnp.where(denominator == 0, 1.0, denominator))


def _gradient(x):
    """|d/dx| + |d/dy| + |d/dz| of a volume, one voxel less on every side.

    A difference over two voxels, under the weights [[1, 1, 1], [1, 2, 1], [1, 1, 1]] / 20 across it.
    """
    total = 0.0
    for axis in range(3):
        across = [other for other in range(3) if other != axis]
        difference = _cut(x, axis, 2, 0) - _cut(x, axis, 0, 2)
        box = difference
        for other in across:
            box = _cut(box, other, 0, 2) + _cut(box, other, 1, 1) + _cut(box, other, 2, 0)
        centre = _cut(_cut(difference, across[0], 1, 1), across[1], 1, 1)
        total += jnp.abs(box + centre) / 20
    return total


def _cut(x, axis, first, last):
    """`x` without so many of its first and last planes."""
    return jax.lax.slice_in_dim(x, first, x.shape[axis] - last, axis=axis)


def _regions(gx, gy, margin):
    """Masks of edges that stay, edges that change, smooth parts and texture, [4, D, H, W]."""
    strong, weak = _STRONG * gx.max(), _WEAK * gx.max()
    stays = (gx > strong) & (gy > strong)
    changes = ((gx > strong) | (gy > strong)) & ~stays
    flat = (gx < weak) & (gy <= strong) & ~(stays | changes)
    masks = jnp.stack([stays, changes, flat, ~(stays | changes | flat)])
    inside = slice(margin, -margin)
    return masks[:, inside, inside, inside].astype(jnp.float32)


def _regional(values, regions):
    """The mean over the regions, each of one weight, that hold anything."""
    sizes = regions.sum((1, 2, 3))
    means = (values * regions).sum((1, 2, 3)) / (sizes + _FLOOR)
    return means.sum() / jnp.maximum((sizes > 0).sum(), 1)
