"""Whether an image can be a T1w scan of a head at all."""

from __future__ import annotations

import numpy as np

from brainldm.volumes.geometry import background_value

SMALLEST_FOV_MM = 90
"""A field of view smaller than this along one axis holds no whole brain."""


def looks_like_labels(data: np.ndarray) -> bool:
    """Whether an image [D, H, W] is a segmentation: few whole numbers, and neighbours mostly equal.

    Few distinct values alone do not tell, because 8-bit scans have no more than 256.
    """
    values = data[:: max(1, data.shape[0] // 48)]
    inside = values != background_value(data)
    if not inside.any() or not np.array_equal(np.rint(values[inside]), values[inside]):
        return False
    pairs = inside[:, 1:] & inside[:, :-1]
    equal = (values[:, 1:] == values[:, :-1])[pairs]
    return equal.size > 0 and float(equal.mean()) > 0.6
