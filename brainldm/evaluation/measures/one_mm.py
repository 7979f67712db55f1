"""Images at 1 mm, as networks that segment take them, and their label maps back on the grid that they came from."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_NEAR_1MM = 0.05


def resample_to_1mm(data: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`data` [D, H, W] with 1 mm voxels where a side of its own differs from that by more than 0.05 mm.

    Linear; an axis that is sampled down is blurred first, by a Gaussian of a quarter of the voxels of 1 mm. Returns it
    and the voxel size [3] in mm. The first voxel's outer faces stay where they are.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    if np.all(np.abs(spacing - 1) <= _NEAR_1MM):
        return data, spacing
    blurred = ndimage.gaussian_filter(np.asarray(data, np.float32), np.where(spacing > 1, 0, 0.25 / spacing))
    sides = tuple(int(side) for side in np.ceil(np.round(data.shape * spacing, 6)))
    step = 1 / spacing
    moved = ndimage.affine_transform(
        blurred, step, (step - 1) / 2, sides, output=np.float32, order=1, mode="nearest", prefilter=False
    )
    return moved, np.ones(3)


def labels_on_grid(labels: np.ndarray, shape: tuple[int, ...], spacing_mm: np.ndarray) -> np.ndarray:
    """A label map at 1 mm, as `resample_to_1mm` lays it, on the grid that it came from (nearest voxel)."""
    if labels.shape == tuple(shape):
        return labels
    for axis, (side, spacing) in enumerate(zip(shape, spacing_mm, strict=True)):
        place = np.rint((np.arange(side) + 0.5) * spacing - 0.5 - 1e-6).astype(int)
        labels = np.take(labels, np.clip(place, 0, labels.shape[axis] - 1), axis=axis)
    return labels
