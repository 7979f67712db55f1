"""Ventricle and brain volume from the image alone, without trained weights.

Lateral ventricles: a corridor around the template's ventricles, brought to the brain's own box, bounds the
search; CSF connected with the ventricles' core inside the corridor is kept; its partial-volume fractions are
summed. The corridor widens with the volume found until both agree, so that it does not saturate.

Brain volume: the tissue fraction of everything inside the head mask. In the embedded population, whose heads have the
shape of the template, its product with the template's intracranial volume is the volume normalised for head size. In
people it is not, because how much CSF a skull stripper leaves differs: there the fraction times the head mask is the
volume of tissue as imaged, which the registration's scale normalises.

The figures are put on the scale of known volumes by one line per spacing (`CALIBRATION`), fitted on the
embedded population with `python -m brainldm.evaluation.measures.volumetry_calibration`, which prints it anew, and
in people by what is left to 24 labelled scans (`VENTRICLES_LEFT_OUT_ML`, `TISSUE_GAIN`).

Accuracy of the ventricles against labels (r, slope, mean absolute error):
- people of the embedded population that the calibration has not seen, 7 to 171 mL: 0.998, 1.00, 1.4 mL at
  4 mm (n = 240), rarely 10 to 22 mL off; 0.999, 0.99, 1.2 mL at 2 mm (n = 20);
- 24 real scans with manual labels, 6 to 36 mL: r 0.985, 0.985 and 0.989 at 1, 2 and 4 mm, slope 1.06, 1.06 and 1.01,
  1.1, 1.1 and 1.0 mL (worst 5.8, 5.8 and 2.4 mL), the offset left to each by the 23 others 1.2, 1.2 and 1.0 mL;
- 11 real scans of other people, 10 to 67 mL, with the offset of those 24: 1.5 mL at 2 mm, 1.7 mL at 4 mm;
- blurring by half a voxel takes 2 to 7 mL off at 4 mm (less than 10 % from 50 mL on) and 1 to 3 mL at 2 mm
  (20 % at 13 mL, less than 5 % from 22 mL on).
The constants below were chosen with the figures on the 24 scans in view: those are no independent test.

Accuracy of the brain against labels of people of the population that the calibration has not seen: at 4 mm
r 0.99, slope 1.03, mean absolute error 11 mL as drawn (n = 120), and 0.955, 1.02, 16 mL (0.93 to 0.97 from
draw to draw) when half of them have ventricles spread over 7 to 171 mL (n = 240); at 2 mm 0.99, 1.06, 8 mL
(n = 20). On the 24 real scans, tissue as imaged (957 to 1501 mL): r 0.994 and 0.997 at 2 and 4 mm, 13 and 10 mL;
normalised by the registration's scale (1638 to 1821 mL): r 0.90 and 0.92, 19 and 14 mL.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from scipy import ndimage

from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import SPACINGS_MM, Grid
from brainldm.volumes.nifti import block_average
from brainldm.volumes.template import load_template

CALIBRATION: dict[int, dict[str, tuple[float, float]]] = {
    1: {"ventricles_ml": (1.0278, -1.60), "brain_ml": (1.4703, -801.24)},
    2: {"ventricles_ml": (1.0278, -1.60), "brain_ml": (1.4703, -801.24)},
    4: {"ventricles_ml": (1.0185, -1.03), "brain_ml": (1.7738, -1252.93)},
}
"""Per spacing in mm: (slope, intercept in mL) that turn a raw volume into a measured one. 1 mm images
are averaged to 2 mm before they are measured and share that line."""

VENTRICLES_LEFT_OUT_ML = {1: 4.36, 2: 4.36, 4: 4.66}
"""Per spacing in mm: what is added in people, the mean of label minus measure over 24 real scans with manual labels
(sd 1.7, 1.7 and 1.3 mL; no trend with volume). Labels of lateral ventricles hold the choroid plexus, which is no darker
than grey matter, and the inferior horns, of which the template has little: no part of that is in the CSF found."""

TISSUE_GAIN = {1: 1.041, 2: 1.041, 4: 1.011}
"""Per spacing in mm: labelled tissue over tissue found in people, both as imaged, the ratio of the sums of those 24."""

# Intensities are in units of the white-matter level: the 90th percentile inside the head, taken after smoothing so that
# it depends little on how sharp the image is.
_WHITE_PERCENTILE = 90
_WHITE_SMOOTHING_MM = 4.0
_HEAD = 0.1
_CSF = 0.3  # and below: all CSF. A fixed level, because small ventricles at 4 mm hold no voxel of pure CSF.
_VENTRICLE_WALL = 0.85  # and above: no CSF; between white matter and caudate, which border the ventricles
_START_LEVELS = (0.3, 0.75, 1.05)  # of CSF, grey and white matter, where the 3-means start
_ALL_TISSUE = 0.7  # the part of the way from CSF to grey matter at which a voxel counts as all tissue

_CONNECTED = 0.55  # CSF fraction of a voxel that can carry the connection to the core
_CORE = 0.65
_SMOOTHING_MM = 1.4  # closes leaks through single voxels; a 4 mm voxel is already as smooth
_DEPTH_MM = 9.0  # CSF nearer to the brain surface is sulcal
# Corridor around the template's ventricles: mm, and mm per mL found (in a head of its size).
_REACH_MM = (8.0, 0.15)
_SHARE = (0.8, 1 / 60)  # bound of distance to the ventricles over distance to other CSF: at 0 mL, and per mL
_ROUNDS = 12

_HEAD_ML = (500.0, 2600.0)  # an object of another size is no head


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Volumes in mL of one image; all NaN, with the reason, when they could not be measured.

    `ventricles_ml` is both lateral ventricles; `brain_ml` is grey and white matter, normalised for head size (NaN where
    the size of the head is not known); `icv_ml` is the inside of the head mask and `tissue_ml` grey and white matter,
    as imaged, not normalised (`tissue_ml` is NaN in the embedded population, for which it is not calibrated).
    """

    ventricles_ml: float
    brain_ml: float
    icv_ml: float
    tissue_ml: float = math.nan
    reason: str = ""


def measure(image: np.ndarray, grid: Grid, people: bool = False, scale: float | None = None) -> Measurement:
    """Measure a skull-stripped T1w volume [D, H, W] (or [D, H, W, 1]) in RAS order, intensities about 0..1.

    The brain must lie in MNI orientation; position and size are found from the image. 1 mm volumes are averaged to
    2 mm first. An image without a brain gives NaN and a reason, never an error.

    Args:
        people: the image shows a person, or comes from a model that learnt from people; else the embedded population.
        scale: of the brain relative to the template's along one axis, as `prepare` records it. Without it the
            `brain_ml` of people is NaN.

    Raises:
        UserError: when the voxels are not 1, 2 or 4 mm (within 5 %).
        ValueError: when `image` is not three-dimensional or not of the grid's shape.
    """
    return _calibrated(measure_raw(image, grid), spacing_of(grid), people, scale)


def measure_with_labels(
    image: np.ndarray, grid: Grid, people: bool = False, scale: float | None = None
) -> tuple[Measurement, np.ndarray]:
    """As `measure`, and the voxels (bool [D, H, W]) that count as lateral ventricles: half of them CSF, or more."""
    raw, mask = _measure_raw(image, grid)
    return _calibrated(raw, spacing_of(grid), people, scale), mask


def measure_raw(image: np.ndarray, grid: Grid) -> Measurement:
    """As `measure`, before calibration."""
    return _measure_raw(image, grid)[0]


def _calibrated(raw: Measurement, spacing: int, people: bool, scale: float | None) -> Measurement:
    if raw.reason:
        return raw
    (slope, intercept), (brain_slope, brain_intercept) = (
        CALIBRATION[spacing][name] for name in ("ventricles_ml", "brain_ml")
    )
    ventricles_ml = slope * raw.ventricles_ml + intercept + people * VENTRICLES_LEFT_OUT_ML[spacing]
    tissue_ml = TISSUE_GAIN[spacing] * raw.tissue_ml if people else math.nan
    if not people:
        brain_ml = brain_slope * raw.brain_ml + brain_intercept
    else:
        brain_ml = tissue_ml / scale**3 if scale else math.nan
    return Measurement(max(ventricles_ml, 0.0), brain_ml, raw.icv_ml, tissue_ml)


def _measure_raw(image: np.ndarray, grid: Grid) -> tuple[Measurement, np.ndarray]:
    image = np.asarray(image, np.float32)
    image = image[..., 0] if image.ndim == 4 and image.shape[-1] == 1 else image
    spacing = spacing_of(grid)
    if image.ndim != 3 or image.shape != tuple(grid.shape):
        raise ValueError(f"an image of shape {image.shape} does not lie on a grid of shape {tuple(grid.shape)}")
    shape, voxel_ml = image.shape, grid.voxel_ml
    if not np.isfinite(image).all():
        return _nothing("the image holds NaN or infinite voxels", shape)
    if spacing == 1:
        even = image[tuple(slice(side // 2 * 2) for side in shape)]
        image, voxel_ml, spacing = block_average(even, 2), voxel_ml * 8, 2
    head, white = _find_head(image, spacing)
    icv_ml = float(head.sum()) * voxel_ml
    if not _HEAD_ML[0] <= icv_ml <= _HEAD_ML[1]:
        return _nothing(f"no brain found: the largest bright object has {icv_ml:.0f} mL", shape)
    inside = image / white
    tissue_fraction = _tissue_fraction(inside[head])
    csf = np.clip((_VENTRICLE_WALL - inside) / (_VENTRICLE_WALL - _CSF), 0, 1) * head
    corridor = _corridor(head, spacing)
    ventricles_ml, pool = _ventricles(csf, corridor, spacing, voxel_ml, _reference().icv_ml / icv_ml)
    found = Measurement(ventricles_ml, tissue_fraction * _reference().icv_ml, icv_ml, tissue_fraction * icv_ml)
    return found, _on_shape(pool & (csf >= 0.5), shape)


def _on_shape(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of the averaged volume on the voxels of the image; a last odd one is outside."""
    for axis, side in enumerate(shape):
        if mask.shape[axis] != side:
            mask = np.repeat(mask, 2, axis=axis)
    return np.pad(mask, [(0, side - have) for side, have in zip(shape, mask.shape, strict=True)])


def spacing_of(grid: Grid) -> int:
    """1, 2 or 4, the voxel size in mm. Raises UserError for a grid with other voxels."""
    for spacing in SPACINGS_MM:
        if np.allclose(grid.spacing_mm, spacing, rtol=0.05):
            return spacing
    sizes = " x ".join(f"{size:g}" for size in np.asarray(grid.spacing_mm))
    raise UserError(
        f"Volumes cannot be measured on voxels of {sizes} mm: the measure is calibrated for 1, 2 and 4 mm. "
        "Bring the images to the training box with `brainldm prepare`."
    )


def _nothing(reason: str, shape: tuple[int, ...]) -> tuple[Measurement, np.ndarray]:
    return Measurement(math.nan, math.nan, math.nan, reason=reason), np.zeros(shape, bool)


def _find_head(image: np.ndarray, spacing: int) -> tuple[np.ndarray, float]:
    """Mask of everything inside the head, CSF included, and the white-matter level."""
    bright = image[image > 0.05]
    if not bright.size:
        return np.zeros(image.shape, bool), 1.0
    labels, count = ndimage.label(image > _HEAD * np.percentile(bright, _WHITE_PERCENTILE))
    head = labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=count + 1)[1:])
    # Dark CSF at the rim is reached by closing, dark ventricles by filling.
    head = np.pad(head, 2)
    head = ndimage.binary_closing(head, iterations=2 if spacing == 2 else 1)[2:-2, 2:-2, 2:-2]
    head = ndimage.binary_fill_holes(head)
    smooth = ndimage.gaussian_filter(image, _WHITE_SMOOTHING_MM / spacing)
    return head, float(np.percentile(smooth[head], _WHITE_PERCENTILE))


def _tissue_fraction(values: np.ndarray) -> float:
    """Part of the head that is grey or white matter, from its intensities (1D, white matter about 1).

    A voxel counts by its place between the levels of CSF and grey matter, found by 3-means on the histogram.
    """
    counts, edges = np.histogram(values, 256, (0, 1.6))
    centres = (edges[1:] + edges[:-1]) / 2
    levels = np.array(_START_LEVELS)
    for _ in range(20):
        nearest = np.abs(centres[:, None] - levels).argmin(1)
        weight = np.bincount(nearest, counts, 3)
        levels = np.where(weight > 0, np.bincount(nearest, counts * centres, 3) / np.maximum(weight, 1), levels)
    span = max(_ALL_TISSUE * (levels[1] - levels[0]), 1e-3)
    return float(np.clip((values - levels[0]) / span, 0, 1).mean(dtype=np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class _Distances:
    """Distances in mm on one grid of the template, and the box (voxels) of its head, each [3]."""

    to_ventricles: np.ndarray
    to_other_csf: np.ndarray
    to_surface: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Reference:
    icv_ml: float
    distances: dict[int, _Distances]


@functools.lru_cache(maxsize=1)
def _reference() -> _Reference:
    """Distance maps of the template, made once per process (a few seconds)."""
    template = load_template(2)
    core = template.ventricles > 0.5
    csf = np.clip(template.mask - template.gm - template.wm, 0, 1)
    other = (csf > 0.45) & ~ndimage.binary_dilation(core, iterations=2)
    fine = [(ndimage.distance_transform_edt(a) * 2).astype(np.float32) for a in (~core, ~other, template.mask)]
    coarse_head = block_average(template.mask.astype(np.float32), 2) > 0.5
    return _Reference(
        template.icv_ml,
        {
            2: _Distances(*fine, *_box(template.mask)),
            4: _Distances(*(block_average(a, 2) for a in fine), *_box(coarse_head)),
        },
    )


def _box(head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.percentile(np.argwhere(head), [0.5, 99.5], axis=0)
    return low, high


def _corridor(head: np.ndarray, spacing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template's three distance maps on the image's grid, by matching the boxes of the two heads."""
    reference = _reference().distances[spacing]
    low, high = _box(head)
    scale = (reference.high - reference.low) / np.maximum(high - low, 1)
    # How far down a mask reaches depends on where the brain stem was cut, so the height is not trusted.
    scale[2] = np.sqrt(scale[0] * scale[1])
    offset = reference.low - low * scale
    offset[2] = reference.high[2] - high[2] * scale[2]
    maps = (reference.to_ventricles, reference.to_other_csf, reference.to_surface)
    return tuple(
        ndimage.affine_transform(m, scale, offset, output_shape=head.shape, order=1, mode="nearest") for m in maps
    )


def _ventricles(
    csf: np.ndarray, corridor: tuple, spacing: int, voxel_ml: float, to_template_size: float
) -> tuple[float, np.ndarray]:
    """The pool of CSF connected with the core, in a corridor as wide as it needs: the sum of its CSF fractions in mL,
    and its voxels."""
    near, other, depth = corridor
    smooth = ndimage.gaussian_filter(csf, _SMOOTHING_MM / spacing) if spacing < 4 else csf
    neighbours = ndimage.generate_binary_structure(3, 1)
    volume = 6.0  # from below, so that the narrowest corridor that agrees with its volume is the one taken
    for _ in range(_ROUNDS):
        reach = _REACH_MM[0] + _REACH_MM[1] * volume * to_template_size
        share = _SHARE[0] + _SHARE[1] * volume * to_template_size
        carries = (smooth > _CONNECTED) & (near < reach) & (near < share * other + 1) & (depth > _DEPTH_MM)
        core = carries & (near <= 2) & (smooth > _CORE)
        pool = ndimage.binary_propagation(core, neighbours, mask=carries)
        # One more layer for the partial voxels of the wall.
        pool = ndimage.binary_dilation(pool, neighbours) & (near < reach + spacing) & (depth > _DEPTH_MM)
        pool &= near < share * other + 1 + spacing
        last, volume = volume, float(csf[pool].sum(dtype=np.float64)) * voxel_ml
        if abs(volume - last) <= 0.01 * last:
            break
    return volume, pool
