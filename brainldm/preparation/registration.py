"""Rigid registration of a T1w scan to the MNI152 template: seven degrees of freedom fitted, the scale dropped.

A rigid fit of a small brain to the large template tilts it, because the surfaces cannot all meet. So size is
fitted too and then left out, as UniRes does with `atlas_rigid` (Brudfors et al. 2020), which the paper used. The
rotation and translation that stay are those about the centroid of the template's brain: that point keeps its
place in the scan, and the brain stays centred in the box whatever its size.

Copyright of the template: see `brainldm.volumes.template.COPYRIGHT_NOTICE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainldm.preparation.fit_quality import (
    Reference,
    coverage,
    overlap,
    similarity,
    template_correlation,
    template_reference,
)
from brainldm.runtime.errors import UserError
from brainldm.volumes.geometry import (
    background_value,
    correlation,
    otsu,
    pad,
    pose_matrix,
    quaternion,
    sample,
    shrink,
    to_world,
)
from brainldm.volumes.nifti import Volume

SKULLS = ("auto", "stripped", "whole")

LIMITS = {"stripped": (0.35, 0.85), "whole": (0.35, 0.5)}
"""Least similarity and overlap of a fit that is passed on.

Measured on real scans. Similarity: right fits 0.51 to 0.67 (stripped and whole, 1 and 2 mm); the same fits turned by
10 degrees 0.42, by 15 degrees 0.33, shifted by 10 mm 0.32; upside down, back to front or with swapped axes at most
0.22; inverted contrast and noise in the shape of the brain below 0.06. Overlap of stripped brains: right at least
0.94, half a brain at most 0.76. The overlap of heads tells little (0.72 to 0.87 right) and has a limit for the worst.
"""
REGISTERED_LIMITS = {"stripped": (0.2, 0.8), "whole": (0.2, 0.5)}
"""The same for scans registered elsewhere: other tools place a brain up to 8 mm otherwise, which leaves a similarity of
0.23 and more; upside down, back to front or turned by 90 degrees leaves at most 0.16."""
SCALES = (0.75, 1.25)
"""Sizes of a brain relative to the template's, along one axis, that people have (measured: 0.83 to 1.0)."""
_STARTS = 3
"""Best places of the coarse search from which a fit is started."""
_PADDING_MM = 40
"""Background put around a skull-stripped scan: outside its field of view there is none of its brain."""
_SEED = 1
_SAMPLED, _ITERATIONS, _STEPS_MM, _SMALLEST_STEPS_MM = (0.5, 0.15), (60, 80), (2.0, 0.5), (0.05, 0.005)
"""Of the fit at 4 mm and at 2 mm: fraction of voxels looked at, most steps, first and last step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Registration:
    """Where a scan lies in the template.

    `scan_to_template` [4, 4] is rigid and maps world mm of the scan to world mm of MNI152 (both RAS). `scale` is
    the size of the brain relative to the template's, along one axis, which the fit found and dropped.
    `similarity` is the correlation of the fitted scan's details with the template's inside the brain, `overlap` the
    Dice coefficient of the brain's estimate with the template's brain, both with the scale still in: they tell a
    bad fit, not a small head (see LIMITS). `coverage` is the fraction of the template's brain inside the scan's field
    of view. `skull` is "stripped" or "whole".
    """

    scan_to_template: np.ndarray
    scale: float
    similarity: float
    overlap: float
    coverage: float
    skull: str

    @property
    def rotation_deg(self) -> float:
        """Angle by which the scan was turned."""
        return float(np.degrees(Rotation.from_matrix(self.scan_to_template[:3, :3]).magnitude()))


def require_simpleitk() -> ModuleType:
    """The SimpleITK module. Raises UserError when it is not installed."""
    try:
        return importlib.import_module("SimpleITK")
    except ImportError as error:
        raise UserError(
            "Registration and bias correction use SimpleITK, which is not installed. Install it with "
            "pip install 'brainldm[prepare]', or give --registered for scans that lie in MNI152 space already."
        ) from error


@contextlib.contextmanager
def one_thread(itk: ModuleType) -> Iterator[None]:
    """Inside, ITK starts one thread. Sums split between threads differ in the last bits with their number.

    A filter's own setting is not enough: the correlation metric has a helper that takes the process's.
    """
    before = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def register(scan: Volume, skull: str = "auto") -> Registration:
    """The rigid transform that brings `scan` (T1w, any position up to about 30 degrees off) into MNI152 space.

    `skull` says whether the scan shows the brain alone ("stripped") or the head ("whole"); "auto" looks
    (`find_skull`). The same arguments give the same bits: one thread, regular samples, no clock.
    Left and right cannot be told apart in a symmetric template; they are those of the scan's header.
    Raises UserError when SimpleITK is missing, or for a scan with nothing in it to fit.
    """
    itk = require_simpleitk()
    skull = find_skull(scan) if skull == "auto" else skull
    stripped = skull == "stripped"
    reference = template_reference(stripped)
    moving = _reduce(scan, stripped)
    starts = _search(reference, moving, stripped)
    with one_thread(itk):
        candidates = [_fit(itk, reference, 0, moving[1], start, stripped) for start in starts]
        best = max(candidates, key=lambda pose: template_correlation(reference, moving[1], pose))
        pose = _fit(itk, reference, 1, moving[0], best, stripped)
    return _registration_of(reference, scan, moving[0], pose, skull)


def assess_fit(scan: Volume, skull: str = "auto") -> Registration:
    """What `register` reports, for a scan that is in MNI152 space already: nothing is fitted or moved.

    The size of the brain, which the measures leave out, is the one of a few at which they are best. Needs no
    SimpleITK.
    """
    skull = find_skull(scan) if skull == "auto" else skull
    stripped = skull == "stripped"
    reference = template_reference(stripped)
    moving = _reduce(scan, stripped)[0]
    sizes = [_volume_scale(reference, moving)] if stripped else [0.85, 0.9, 0.95, 1.0]
    poses = [np.array([0.0] * 6 + [size]) for size in sizes]
    best = max(poses, key=lambda pose: similarity(reference, moving, pose))
    return _registration_of(reference, scan, moving, best, skull)


def _registration_of(reference: Reference, scan: Volume, moving: Volume, pose: np.ndarray, skull: str) -> Registration:
    return Registration(
        scan_to_template=np.linalg.inv(pose_matrix(pose, reference.centre, with_scale=False)),
        scale=round(float(pose[6]), 6),
        similarity=similarity(reference, moving, pose),
        overlap=overlap(reference, moving, pose, skull == "stripped"),
        coverage=coverage(reference, scan, pose),
        skull=skull,
    )


def _volume_scale(reference: Reference, moving: Volume) -> float:
    brain_ml = int((moving.data > 0.05).sum()) * abs(np.linalg.det(moving.affine[:3, :3])) / 1000
    return float(np.clip(brain_ml / reference.volume_ml, 0.4, 1.8) ** (1 / 3))


def find_skull(scan: Volume) -> str:
    """ "stripped" or "whole": whether a brain alone is seen.

    Stripped scans have a background of exactly one value (a fifth of the voxels at least) around at most
    2300 mL of something else; the largest brains have 1900 mL inside the skull, a head has 3000 mL and more.
    """
    background = background_value(scan.data)
    outside = scan.data == background
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    inside_ml = (scan.data.size - int(outside.sum())) * voxel_ml
    return "stripped" if outside.mean() >= 0.2 and inside_ml <= 2300 else "whole"


def _reduce(scan: Volume, stripped: bool) -> tuple[Volume, Volume, Volume]:
    """The scan with voxels of about 2 mm, about 4 mm, and the latter smoothed; intensities in 0..1."""
    data = scan.data
    if stripped:
        inside = data != background_value(data)
        low, high = np.percentile(data[inside], (0.5, 99.5)) if inside.any() else (0.0, 0.0)
        low = min(low, max(0.0, float(data[inside].min()))) if inside.any() else low
    else:
        inside = np.ones(data.shape, bool)
        low, high = np.percentile(data, (1, 99.5))
    if not high > low:
        raise UserError("Nothing in the image can be told from its background, so there is no brain to register.")
    data = ((np.clip(data, low, high) - low) / (high - low) * inside).astype(np.float32)
    levels = [shrink(Volume(data, scan.affine), target) for target in (2.0, 4.0)]
    if stripped:
        levels = [pad(level, _PADDING_MM) for level in levels]
    sigma = 4.0 / np.linalg.norm(levels[1].affine[:3, :3], axis=0)
    return levels[0], levels[1], Volume(ndimage.gaussian_filter(levels[1].data, sigma), levels[1].affine)


def _search(reference: Reference, moving: tuple[Volume, Volume, Volume], stripped: bool) -> list[np.ndarray]:
    """Places to start from: the best of a grid of rotations and translations by correlation at 8 mm."""
    smooth = moving[2]
    points, values = reference.search
    turns = [np.radians(t) for t in (-24, -12, 0, 12, 24)] if stripped else [np.radians(t) for t in (-20, 0, 20)]
    rotations = [Rotation.from_euler("xyz", t).as_quat() for t in itertools.product(turns, repeat=3)]
    if stripped:
        brain = moving[1].data > 0.05
        scale = _volume_scale(reference, moving[1])
        middle, shifts = to_world(np.argwhere(brain).mean(0), moving[1].affine), [np.zeros(3)]
    else:
        scale, middle = 0.93, _head_centre(moving[1])
        shifts = [np.array(s) for s in itertools.product((-12, 0, 12), (-20, 0, 20), (-36, -18, 0, 18, 36))]
    scored = []
    for turn, shift in itertools.product(rotations, shifts):
        pose = np.array([*(turn[:3] * np.sign(turn[3])), *(middle - reference.centre + shift), scale])
        scored.append((correlation(values, sample(smooth, points, pose_matrix(pose, reference.centre))), pose))
    scored.sort(key=lambda pair: -pair[0])
    chosen: list[np.ndarray] = []
    for _, pose in scored:
        if all(_apart(pose, other) for other in chosen):
            chosen.append(pose)
        if len(chosen) == _STARTS:
            break
    return chosen


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two starts are no neighbours."""
    turned = Rotation.from_quat(quaternion(one)).inv() * Rotation.from_quat(quaternion(other))
    return np.degrees(turned.magnitude()) > 15 or np.linalg.norm(one[3:6] - other[3:6]) > 22


def _head_centre(volume: Volume) -> np.ndarray:
    """About where the brain's centre is in a head: under the top of it, whatever neck is in the image."""
    data = volume.data
    threshold = otsu(data.ravel()) * 0.6
    labels, count = ndimage.label(data > threshold)
    if count == 0:
        raise UserError("Nothing in the image can be told from its background, so there is no head to register.")
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    places = to_world(np.argwhere(labels == largest), volume.affine)
    top = np.percentile(places[:, 2], 99.9)
    upper = places[places[:, 2] > top - 150]
    sides = np.percentile(upper[:, :2], (2, 98), axis=0)
    return np.array([*sides.mean(0), top - 85])


def _fit(
    itk: ModuleType, reference: Reference, level: int, moving: Volume, start: np.ndarray, stripped: bool
) -> np.ndarray:
    """The pose [7] after gradient descent from `start` at one level (0: 4 mm, 1: 2 mm), on one thread."""
    image, mask = (itk_image(itk, volume) for volume in reference.levels[level])
    transform = itk.Similarity3DTransform()
    transform.SetCenter(reference.centre.tolist())
    transform.SetParameters(start.tolist())
    method = itk.ImageRegistrationMethod()
    if stripped:
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(mask)
    if _SAMPLED[level] < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(_SAMPLED[level], _SEED)
    method.SetInterpolator(itk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=_STEPS_MM[level],
        minStep=_SMALLEST_STEPS_MM[level],
        numberOfIterations=_ITERATIONS[level],
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(image, itk_image(itk, moving))
    return np.array(transform.GetParameters())


def itk_image(itk: ModuleType, volume: Volume) -> Any:
    """The volume for ITK. Its axes stay those of RAS: a registration does not care what its axes are called."""
    image = itk.GetImageFromArray(np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((volume.affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image
