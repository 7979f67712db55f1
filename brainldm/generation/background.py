"""Around a skull-stripped brain there is nothing: voxels of exactly 0, which a decoder only comes near to."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

THRESHOLD = 0.03
"""Mean of 27 voxels, of the intensity range [0, 1], above which tissue is there: fluid is brighter, haze darker."""


def clear_background(volume: np.ndarray) -> np.ndarray:
    """A brain [D, H, W] with intensities in [0, 1], and exactly 0 outside of it.

    What is brain is decided by the volume alone: the largest connected part whose local mean exceeds THRESHOLD, and
    everything that it encloses. Voxels inside keep their values.
    """
    tissue = ndimage.uniform_filter(volume, 3, mode="constant") > THRESHOLD
    labels, count = ndimage.label(tissue)
    if count == 0:
        return volume
    brain = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    # By components: `binary_fill_holes` dilates voxel by voxel until nothing changes.
    outside, _ = ndimage.label(np.pad(~brain, 1, constant_values=True))
    return np.where(outside[1:-1, 1:-1, 1:-1] == outside[0, 0, 0], np.zeros((), volume.dtype), volume)
