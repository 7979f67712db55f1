"""Points, poses and small images: the arithmetic of registration, in numpy and scipy.

A pose [7] is what ITK's Similarity3DTransform has: the vector part of a unit quaternion, a translation (mm) and a
scale. It takes a world point x of the template to s R (x - centre) + centre + t in the scan.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainldm.volumes.nifti import Volume


def quaternion(pose: np.ndarray) -> np.ndarray:
    """The rotation of a pose as x, y, z, w."""
    return np.array([*pose[:3], np.sqrt(max(0.0, 1 - float(pose[:3] @ pose[:3])))])


def pose_matrix(pose: np.ndarray, centre: np.ndarray, with_scale: bool = True) -> np.ndarray:
    """A pose as a matrix [4, 4], world mm of the template to world mm of the scan."""
    linear = Rotation.from_quat(quaternion(pose)).as_matrix() * (pose[6] if with_scale else 1.0)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + pose[3:6] - linear @ centre
    return matrix


def sample(volume: Volume, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Values of the volume at `matrix` times world points [N, 3], linear, 0 outside."""
    to_index = np.linalg.inv(volume.affine) @ matrix
    index = points @ to_index[:3, :3].T + to_index[:3, 3]
    return ndimage.map_coordinates(volume.data, index.T, order=1, output=np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-12))


def otsu(values: np.ndarray) -> float:
    """Threshold of Otsu 1979: between the two classes whose means lie farthest apart."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = counts.sum() - below
    mass = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(middles[np.nanargmax(between)])


def shrink(volume: Volume, target_mm: float) -> Volume:
    """Block averages with whole factors that bring the voxels near to `target_mm`."""
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    factors = np.maximum(1, np.floor(target_mm / spacing + 0.25)).astype(int)
    factors = np.minimum(factors, volume.data.shape)
    sides = [side // factor * factor for side, factor in zip(volume.data.shape, factors, strict=True)]
    blocks = volume.data[: sides[0], : sides[1], : sides[2]].reshape(
        sides[0] // factors[0], factors[0], sides[1] // factors[1], factors[1], sides[2] // factors[2], factors[2]
    )
    affine = volume.affine @ np.diag([*factors, 1.0])
    affine[:3, 3] = to_world((factors - 1) / 2, volume.affine)
    return Volume(blocks.mean(axis=(1, 3, 5), dtype=np.float32), affine)


def pad(volume: Volume, margin_mm: float) -> Volume:
    """The volume with zeros around it."""
    width = np.ceil(margin_mm / np.linalg.norm(volume.affine[:3, :3], axis=0)).astype(int)
    affine = volume.affine.copy()
    affine[:3, 3] = to_world(-width, volume.affine)
    return Volume(np.pad(volume.data, [(w, w) for w in width]), affine)


def grow(mask: np.ndarray, voxels: float) -> np.ndarray:
    """A mask dilated by a ball."""
    return ndimage.distance_transform_edt(~mask) <= voxels


def to_world(index: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World mm [..., 3] of voxel indices [..., 3]."""
    return np.asarray(index, float) @ affine[:3, :3].T + affine[:3, 3]


def background_value(data: np.ndarray) -> float:
    """The value of the corners, 0 or the smallest, whichever most voxels have."""
    corners = [float(data[place]) for place in itertools.product((0, -1), repeat=3)]
    candidates = sorted({0.0, float(data.min()), max(set(corners), key=corners.count)})
    return max(candidates, key=lambda value: int(np.count_nonzero(data == value)))
