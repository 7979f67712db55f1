"""Smooth maps of the training box: interpolation, random fields, and a flow that widens the ventricles.

All maps are backward (pulling): they say, for a point of the new image, where in the template to look.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage, sparse

from brainldm.runtime.errors import BrainldmError
from brainldm.volumes.nifti import block_average
from brainldm.volumes.template import Template

NODE_MM = 4
"""Distance between the nodes on which smooth fields are drawn, whatever the spacing of the image."""
_CHUNK = 1 << 17


def interpolation(points: np.ndarray, shape: tuple[int, int, int]) -> sparse.csr_matrix:
    """The matrix [N, D*H*W] that reads a volume of `shape` at `points` [3, N] (voxel indices) trilinearly.

    Points outside take the value of the nearest voxel. One matrix reads any number of channels, and its
    transpose spreads weights over the voxels, which is what makes volumes of labels cheap to predict.
    """
    count = points.shape[1]
    limits = np.asarray(shape)
    cell, fraction = [], []
    for axis in range(3):
        position = np.clip(points[axis], 0, limits[axis] - 1)
        low = np.minimum(position.astype(np.int32), limits[axis] - 2)
        cell.append(low.astype(np.int32))
        fraction.append((position - low).astype(np.float32))
    first = (cell[0] * shape[1] + cell[1]) * shape[2] + cell[2]
    columns = np.empty((count, 8), np.int32)
    weights = np.empty((count, 8), np.float32)
    for corner in range(8):
        i, j, k = corner >> 2 & 1, corner >> 1 & 1, corner & 1
        columns[:, corner] = first + ((i * shape[1] + j) * shape[2] + k)
        weight = fraction[0] if i else 1 - fraction[0]
        weight = weight * (fraction[1] if j else 1 - fraction[1])
        weights[:, corner] = weight * (fraction[2] if k else 1 - fraction[2])
    rows = np.arange(0, 8 * count + 1, 8, dtype=np.int32)
    return sparse.csr_matrix((weights.reshape(-1), columns.reshape(-1), rows), (count, int(limits.prod())))


def sample(values: np.ndarray, shape: tuple[int, int, int], points: np.ndarray) -> np.ndarray:
    """Channels `values` [D*H*W, C] read at `points` [3, N] (voxel indices) -> [N, C] float32."""
    result = np.empty((points.shape[1], values.shape[1]), np.float32)
    for start in range(0, points.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        result[part] = interpolation(points[:, part], shape) @ values
    return result


def random_field(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, channels: int = 1) -> np.ndarray:
    """White noise smoothed by a Gaussian of `sigma` voxels, scaled to sd 1: [channels, *shape] float32."""
    noise = rng.standard_normal((channels, *shape), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, *[sigma] * len(shape)), mode="reflect", truncate=3.0)
    return smooth / smooth.reshape(channels, -1).std(axis=1).reshape(channels, *[1] * len(shape))


@dataclasses.dataclass(frozen=True, eq=False)
class VentricularFlow:
    """A one-parameter family of diffeomorphic maps that widens (time > 0) or narrows the lateral ventricles.

    The velocity is the outward normal of the ventricles, 1 mm per unit of time at their wall, fading with the
    distance from it and to zero at the brain surface; maps are its flow, kept at `times` on the 2 mm grid
    inside the box of voxels `box`. `displacement` [T, M, 3] in mm; `labels` [T, M] are the ventricles after
    the flow; M = voxels of the box in C order. `right` [M] goes from 0 (left half) to 1 (right half).
    """

    times: np.ndarray
    displacement: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    box: tuple[slice, slice, slice]
    origin_mm: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the box, in 2 mm voxels."""
        return tuple(part.stop - part.start for part in self.box)

    def indices(self, points_mm: np.ndarray) -> np.ndarray:
        """World points [3, N] as voxel indices of the box."""
        return (points_mm - self.origin_mm[:, None]) / 2

    def volume_curves(self, points_mm: np.ndarray, point_ml: float) -> np.ndarray:
        """Ventricular volume (mL) of the left and of the right half at every time, [2, T].

        For an image whose sample points, each standing for `point_ml`, fall on the template points
        `points_mm` [3, N] before the flow. The sum over points of interpolated labels is a sum over voxels
        with the weights that the transposed interpolation gives, so one pass serves all times.
        """
        weight = np.zeros(len(self.right), np.float64)
        indices = self.indices(points_mm)
        indices = indices[:, _inside(indices, self.shape)]
        for start in range(0, indices.shape[1], _CHUNK):
            matrix = interpolation(indices[:, start : start + _CHUNK], self.shape)
            weight += matrix.T @ np.ones(matrix.shape[0], np.float32)
        used = np.flatnonzero(self.labels[-1])
        halves = np.stack([weight * (1 - self.right), weight * self.right])[:, used]
        return np.stack([(self.labels[:, used] * half).sum(axis=1) for half in halves]) * point_ml

    def solve_time(self, curves: np.ndarray, asymmetry: float, wanted_ml: float) -> float:
        """The time at which the two halves of `volume_curves` together hold `wanted_ml` (bisection)."""

        def volume(time: float) -> float:
            left, right = self.sides(time, asymmetry)
            return float(np.interp(left, self.times, curves[0]) + np.interp(right, self.times, curves[1]))

        low, high = float(self.times[0]), float(self.times[-1])
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if volume(middle) > wanted_ml else (middle, high)
        return (low + high) / 2

    def sides(self, time: float, asymmetry: float) -> tuple[float, float]:
        """Times of the left and right half; `asymmetry` is their relative difference over two."""
        shift = asymmetry * (abs(time) + 1.5)
        limits = float(self.times[0]), float(self.times[-1])
        return float(np.clip(time - shift, *limits)), float(np.clip(time + shift, *limits))

    def map_points(self, points_mm: np.ndarray, time: float, asymmetry: float) -> np.ndarray:
        """Where the points [3, N] (world mm) come from in the template."""
        left, right = (self._displacement_at(t) for t in self.sides(time, asymmetry))
        field = left + (right - left) * self.right[:, None]
        indices = self.indices(points_mm)
        inside = np.flatnonzero(_inside(indices, self.shape))
        mapped = points_mm.copy()
        mapped[:, inside] += sample(field, self.shape, indices[:, inside]).T
        return mapped

    def _displacement_at(self, time: float) -> np.ndarray:
        last = int(np.clip(np.searchsorted(self.times, time), 1, len(self.times) - 1))
        before, after = self.times[last - 1], self.times[last]
        part = np.float32((time - before) / (after - before))
        return self.displacement[last - 1] * (1 - part) + self.displacement[last] * part


FLOW_TIMES = (-4.5, -3, -2, -1.2, -0.5, 0, 0.6, 1.2, 2, 3, 4.5, 6, 8, 10, 12.5, 15, 18, 21, 24)


def ventricular_flow(template: Template, reach_mm: float = 20.0, margin_mm: float = 10.0) -> VentricularFlow:
    """Integrate the flow for the 1 mm `template`.

    The speed falls as exp(-(distance / reach)^2) from the wall and vanishes over the last `margin_mm` below
    the brain surface. Second-order Runge-Kutta on a stationary field, so the maps are invertible.
    """
    if template.grid.spacing_mm[0] != 1:
        raise BrainldmError("The ventricular flow is integrated from the 1 mm template.")
    labels = block_average(template.ventricles, 2)
    mask = block_average(template.mask.astype(np.float32), 2) > 0.5
    depth = 2 * ndimage.distance_transform_edt(mask).astype(np.float32)
    velocity = _outward_velocity(labels, reach_mm)
    velocity *= np.clip((depth - 2) / margin_mm, 0, 1)
    moving = np.argwhere((np.abs(velocity).max(axis=0) > 0.01) & mask)
    low, high = np.maximum(moving.min(axis=0) - 1, 0), np.minimum(moving.max(axis=0) + 2, mask.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    shape = tuple(int(n) for n in high - low)
    speed = np.ascontiguousarray(velocity[(slice(None), *box)].reshape(3, -1).T)
    origin = template.grid.affine[:3, 3] + 0.5 + 2 * low
    start = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(3, -1).astype(np.float32)
    positions = {0.0: start}
    for sign in (1, -1):
        current, reached = start, 0.0
        for time in sorted((t for t in FLOW_TIMES if t * sign > 0), key=abs):
            current = _integrate(speed, shape, current, time - reached)
            positions[time], reached = current, time
    times = np.asarray(sorted(positions))
    displacement = np.stack([(2 * (positions[t] - start)).T.astype(np.float32) for t in times])
    inside = labels[box].reshape(-1, 1)
    flowed = np.stack([sample(inside, shape, positions[t])[:, 0] for t in times])
    x_mm = origin[0] + 2 * start[0]
    right = (1 / (1 + np.exp(-x_mm / 2.0))).astype(np.float32)
    return VentricularFlow(times, displacement, flowed, right, box, origin.astype(np.float32))


def _outward_velocity(labels: np.ndarray, reach_mm: float) -> np.ndarray:
    """Unit normals of the smoothed distance from the ventricles, slowed with that distance, [3, D, H, W]."""
    inside = ndimage.gaussian_filter(labels, 0.4) > 0.5
    distance = 2 * (ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside))
    distance = ndimage.gaussian_filter(distance.astype(np.float32), 0.7)
    normal = np.stack(np.gradient(ndimage.gaussian_filter(distance, 0.7), 2.0))
    # where opposite walls face each other the gradient is short, and a normal there would be noise
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 0.2)
    velocity = normal * np.exp(-np.square(np.maximum(distance, 0) / reach_mm))
    return np.stack([ndimage.gaussian_filter(part, 0.5) for part in velocity]).astype(np.float32)


def _integrate(velocity: np.ndarray, shape: tuple[int, int, int], points: np.ndarray, time: float) -> np.ndarray:
    """Follow `velocity` [M, 3] (mm per unit of time, 2 mm voxels) backwards from `points` for `time`."""
    steps = max(1, int(np.ceil(abs(time) / 1.5)))
    step = np.float32(time / steps / 2)
    for _ in range(steps):
        middle = points - step / 2 * sample(velocity, shape, points).T
        points = points - step * sample(velocity, shape, middle).T
    return points


def _inside(indices: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    last = np.asarray(shape)[:, None] - 1
    return ((indices >= 0) & (indices <= last)).all(axis=0)
