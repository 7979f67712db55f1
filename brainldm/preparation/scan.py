"""One scan: from what an archive gives to an image on a training grid in MNI152 space."""

from __future__ import annotations

import dataclasses
import functools
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

import brainldm
from brainldm.datasets.scans import ScanError
from brainldm.preparation import registration
from brainldm.preparation.stripping import check_command, strip_by_command
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import round_significant
from brainldm.runtime.rules import FRACTION, number
from brainldm.volumes.geometry import background_value, shrink
from brainldm.volumes.grids import Grid, training_grid
from brainldm.volumes.nifti import Volume, read_volume
from brainldm.volumes.plausibility import SMALLEST_FOV_MM, looks_like_labels
from brainldm.volumes.template import load_template

PRESETS = {"paper-1mm": 1, "paper-2mm": 2, "paper-4mm": 4}
"""Target grids by name: the paper's 160 x 224 x 160 mm box at three voxel sizes (mm)."""

INTERPOLATIONS = {"linear": 1, "cubic": 3}
HIGH_PERCENTILE = 99.8
"""Of the voxels inside the template's brain: mapped to 1. Vessels and remains of fat are the 0.2 % above (3 mL); the
largest value itself would let one bright voxel decide the contrast of a whole brain."""
LOW_PERCENTILE = 0.5
"""Of all voxels (of the brain's own, when stripped and brighter nowhere): mapped to 0."""
HISTOGRAM_BINS = 32


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is done to every scan; two runs with equal options write equal bytes.

    `grid`: one of PRESETS. `registered`: the scans lie in MNI152 space, so only resample. `bias_correction`: N4.
    `skull`: "auto", "stripped" or "whole". `interpolation`: "linear" or "cubic". `masks`: folder of brain masks.
    `strip_command`: command of a skull stripper with {input} and {output} or {mask}. `min_similarity`,
    `min_overlap`: limits of the registration's quality, None for the measured ones (`registration.LIMITS`);
    `min_coverage`: least fraction of the template's brain inside the field of view.
    """

    grid: str = "paper-1mm"
    registered: bool = False
    bias_correction: bool = False
    skull: str = "auto"
    interpolation: str = "linear"
    masks: str | None = None
    strip_command: str | None = None
    min_similarity: float | None = None
    min_overlap: float | None = None
    min_coverage: float = 0.9

    def __post_init__(self) -> None:
        for name, allowed in (("grid", PRESETS), ("skull", registration.SKULLS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)!r}: can be {', '.join(allowed)}.")
        for name in ("min_similarity", "min_overlap", "min_coverage"):
            value = getattr(self, name)
            rule = FRACTION if name == "min_coverage" else number(-1, 1)
            if value is not None and not rule.allows(value):
                raise UserError(f"--{name.replace('_', '-')} {value!r}: {rule.wanted} is wanted.")
        if self.masks and self.strip_command:
            raise UserError("--masks and --strip-command exclude each other: the brain is cut out once. Give one.")
        if self.strip_command:
            check_command(self.strip_command)

    @property
    def target(self) -> Grid:
        """The grid of the images."""
        return training_grid(PRESETS[self.grid])

    def limits(self, skull: str) -> tuple[float, float]:
        """Least similarity and overlap of a scan that is passed on; `skull` is "stripped" or "whole"."""
        usual = (registration.REGISTERED_LIMITS if self.registered else registration.LIMITS)[skull]
        given = (self.min_similarity, self.min_overlap)
        return tuple(usual[i] if value is None else value for i, value in enumerate(given))

    def recorded(self) -> dict[str, Any]:
        """What decides the bytes of an output, for the records; the place of the masks does not."""
        return {**dataclasses.asdict(self), "masks": bool(self.masks)}


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """`image` float32 [D, H, W] in 0..1 on the target grid; `sidecar` for the file beside it, as plain JSON values."""

    image: np.ndarray
    sidecar: dict[str, Any]


def prepare_scan(path: str | Path, options: PrepareOptions, mask: str | Path | None = None) -> Prepared:
    """Read, orient, strip, correct, register, resample and scale one scan, as `options` say.

    `mask` is a brain mask in the scan's space. The voxels are interpolated once, from the scan's own grid; where
    the target voxels are larger, a Gaussian brings the resolution down first. Outside the field of view is 0.
    Raises ScanError, with the stage, for a scan that cannot be used: damaged, a label map, too small a field of
    view, no brain found, or a registration below the limits. Raises UserError when a tool is missing.
    """
    path = Path(path)
    scan = _read(path)
    sidecar: dict[str, Any] = {"Notes": list(scan.notes)} if scan.notes else {}
    scan, stripped_by = _strip(scan, path, options, mask)
    skull = options.skull if stripped_by is None else "stripped"
    skull = registration.find_skull(scan) if skull == "auto" else skull
    scan = _above_zero(scan, skull == "stripped", sidecar)
    if options.bias_correction:
        scan = correct_bias(scan)
    find = registration.assess_fit if options.registered else registration.register
    try:
        found = find(scan, skull)
    except RuntimeError as error:  # ITK gives up on images without overlap
        raise ScanError(
            f"{path.name}: no fit to the template ({_last_line(error)}).", "registration", sidecar
        ) from error
    sidecar["SkullStripped"] = skull == "stripped"
    sidecar["StrippedBy"] = stripped_by or ("source" if skull == "stripped" else "none")
    sidecar["Registration"] = _registration_entries(found, options.registered)
    to_template = np.eye(4) if options.registered else found.scan_to_template
    image = resample(scan, to_template, options.target, INTERPOLATIONS[options.interpolation])
    image = _scale(image, options, sidecar, path)
    problem = _quality_problem(found, options, path)
    if problem:
        raise ScanError(problem, "quality", sidecar, image)
    return Prepared(image, sidecar)


def _read(path: Path) -> Volume:
    try:
        scan = read_volume(path)
    except UserError as error:
        raise ScanError(str(error), "reading") from error
    fov = np.asarray(scan.data.shape) * np.linalg.norm(scan.affine[:3, :3], axis=0)
    if fov.min() < SMALLEST_FOV_MM:
        raise ScanError(
            f"{path}: the field of view is {' x '.join(f'{side:.0f}' for side in fov)} mm, less than a brain "
            f"({SMALLEST_FOV_MM} mm at least along each axis). A slab or a localiser? Leave it out.",
            "reading",
        )
    if looks_like_labels(scan.data):
        raise ScanError(
            f"{path}: a label map or mask (whole numbers, constant over regions), not a T1w image.", "reading"
        )
    return scan


def _strip(scan: Volume, path: Path, options: PrepareOptions, mask: str | Path | None) -> tuple[Volume, str | None]:
    """The scan with everything but the brain set to its background, and how ("mask", "command" or None)."""
    if options.strip_command:
        try:
            brain = strip_by_command(options.strip_command, path)
        except UserError as error:
            raise ScanError(str(error), "stripping") from error
        by = "command"
    else:
        if mask is None and options.masks:
            raise ScanError(f"{path.name}: no mask of this name in the folder of masks.", "stripping")
        if mask is None:
            return scan, None
        try:
            brain = read_volume(mask)
        except UserError as error:
            raise ScanError(str(error), "stripping") from error
        by = "mask"
    inside = _on_grid_of(scan, brain)
    volume_ml = inside.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if not 400 <= volume_ml <= 2300:
        raise ScanError(f"{path.name}: its brain mask has {volume_ml:.0f} mL, which is no brain.", "stripping")
    low = float(scan.data[inside].min())
    # Inside the mask nothing may equal the background: a dark voxel of a ventricle is brain.
    data = np.where(inside, np.maximum(scan.data - low, 0) + 1e-3 * float(np.ptp(scan.data[inside])), 0)
    return Volume(data.astype(np.float32), scan.affine), by


def _on_grid_of(scan: Volume, mask: Volume) -> np.ndarray:
    """A mask as bool on the voxels of the scan (nearest neighbour where the grids differ)."""
    if mask.data.shape == scan.data.shape and np.allclose(mask.affine, scan.affine, atol=0.01):
        return mask.data > 0.5 * mask.data.max()
    to_mask = np.linalg.inv(mask.affine) @ scan.affine
    return ndimage.affine_transform(
        (mask.data > 0.5 * mask.data.max()).astype(np.uint8), to_mask[:3, :3], to_mask[:3, 3], scan.data.shape, order=0
    ).astype(bool)


def _above_zero(scan: Volume, stripped: bool, sidecar: dict[str, Any]) -> Volume:
    """The scan minus its darkest value, nothing below 0 and, when stripped, exactly 0 outside the brain.

    The darkest value is the background's where that is darker than the brain, else a low percentile.
    """
    data = scan.data
    if stripped:
        background = background_value(data)
        inside = data != background
        if not inside.any():
            raise ScanError("Nothing but background in the image.", "reading")
        low = float(np.percentile(data[inside], LOW_PERCENTILE))
        low = min(low, background) if background <= low else low
        data = np.maximum(data - low, 0) * inside
    else:
        low = float(np.percentile(data, LOW_PERCENTILE))
        data = np.maximum(data - low, 0)
    sidecar["IntensityScaling"] = {"Low": round_significant(low), "LowPercentile": LOW_PERCENTILE}
    return Volume(data.astype(np.float32), scan.affine)


def correct_bias(scan: Volume) -> Volume:
    """N4 bias field correction (Tustison et al. 2010, IEEE TMI 29:1310) estimated at about 4 mm, on one thread.

    Raises UserError when SimpleITK is missing.
    """
    itk = registration.require_simpleitk()
    small = shrink(scan, 4.0)
    bright = small.data > 0.15 * np.percentile(small.data[small.data > 0], 95)
    image, mask = (registration.itk_image(itk, Volume(a, small.affine)) for a in (small.data, bright.astype(np.uint8)))
    with registration.one_thread(itk):
        n4 = itk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations([50, 50, 30])
        n4.Execute(image, mask)
        field = itk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    to_small = np.linalg.inv(small.affine) @ scan.affine
    full = ndimage.affine_transform(
        field, to_small[:3, :3], to_small[:3, 3], scan.data.shape, order=1, mode="nearest", output=np.float32
    )
    return Volume(scan.data / np.exp(full), scan.affine)


def resample(scan: Volume, to_template: np.ndarray, grid: Grid, order: int = 1) -> np.ndarray:
    """`scan` moved by `to_template` [4, 4] (world mm to world mm) on `grid`, float32, 0 outside its field of view.

    Where a voxel of the grid is larger than the scan's, the scan is first smoothed along that axis by the Gaussian
    that makes its point spread (full width at half maximum = voxel size) that of the grid (Cardoso et al. 2015,
    Scale factor point spread function matching, MICCAI). One interpolation: linear (`order` 1) or cubic spline (3).
    """
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    target = float(grid.spacing_mm.max())
    sigma = np.sqrt(np.maximum(target**2 - spacing**2, 0)) / np.sqrt(8 * np.log(2)) / spacing
    data = scan.data
    if sigma.max() > 0.1:
        data = ndimage.gaussian_filter(data, np.where(sigma > 0.1, sigma, 0), mode="nearest", truncate=3)
    # Rounded, or a scan that lies on the grid misses its first voxels by 1e-15.
    matrix = np.round(np.linalg.inv(scan.affine) @ np.linalg.inv(to_template) @ grid.affine, 9)
    return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], grid.shape, order=order, output=np.float32)


def _scale(image: np.ndarray, options: PrepareOptions, sidecar: dict[str, Any], path: Path) -> np.ndarray:
    brain = brain_mask(options.grid)
    inside = brain & (image > 0)
    if inside.sum() < 0.2 * brain.sum():
        raise ScanError(f"{path.name}: hardly anything lies where the template's brain is.", "quality", sidecar)
    high = float(np.percentile(image[inside], HIGH_PERCENTILE))
    sidecar["IntensityScaling"] |= {
        "High": round_significant(sidecar["IntensityScaling"]["Low"] + high),
        "HighPercentile": HIGH_PERCENTILE,
    }
    scaled = np.clip(image / high, 0, 1).astype(np.float32)
    counts = np.histogram(scaled[inside], HISTOGRAM_BINS, (0, 1))[0]
    sidecar["IntensityHistogram"] = np.round(counts / counts.sum(), 5).tolist()
    return scaled


@functools.lru_cache(maxsize=1)
def software() -> dict[str, str]:
    """Versions of what the bytes of an output depend on, installed or not."""
    found = {"brainldm": brainldm.__version__}
    for name in ("numpy", "scipy", "nibabel", "SimpleITK"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.lru_cache(maxsize=1)
def brain_mask(grid: str) -> np.ndarray:
    """The template's brain on the target grid of that name, bool [D, H, W]."""
    return load_template(PRESETS[grid]).mask


def _quality_problem(found: registration.Registration, options: PrepareOptions, path: Path) -> str:
    """Why the registration is not good enough, or nothing."""
    similarity, overlap = options.limits(found.skull)
    low, high = registration.SCALES
    if found.similarity < similarity:
        problem = f"similarity with the template is {found.similarity:.2f}, at least {similarity:g} is wanted"
    elif found.overlap < overlap:
        problem = f"overlap with the template's brain is {found.overlap:.2f}, at least {overlap:g} is wanted"
    elif found.coverage < options.min_coverage:
        problem = (
            f"only {found.coverage:.0%} of the template's brain lies in the field of view, at least "
            f"{options.min_coverage:.0%} is wanted"
        )
    elif not low <= found.scale <= high:
        problem = (
            f"the brain would be {found.scale:.2f} times as large as the template's ({low:g} to {high:g} is usual)"
        )
    else:
        return ""
    return f"{path.name}: {problem}."


def _registration_entries(found: registration.Registration, registered: bool) -> dict[str, Any]:
    return {
        "Method": "none, the scan lies in MNI152 space"
        if registered
        else "similarity fit, scale dropped (SimpleITK; correlation)"
        if found.skull == "stripped"
        else "similarity fit, scale dropped (SimpleITK; Mattes mutual information)",
        "ScanToTemplate": (np.eye(4) if registered else np.round(found.scan_to_template, 6) + 0.0).tolist(),
        "RotationDegrees": 0.0 if registered else round(found.rotation_deg, 3),
        "Scale": found.scale,
        "Similarity": found.similarity,
        "Overlap": found.overlap,
        "Coverage": found.coverage,
    }


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
