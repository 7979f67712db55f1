"""Label maps of real brains as anatomies to deform: read, checked, and brought to the training box.

A map becomes signed distances from the surfaces of its head, brain, white matter and ventricles, in mm, negative
inside. They are smooth, so they can be read between voxels without blurring an edge, and mixed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainldm.population import label_table as table
from brainldm.preparation.fit_quality import template_reference
from brainldm.preparation.registration import LIMITS, REGISTERED_LIMITS, assess_fit, register
from brainldm.runtime.errors import UserError
from brainldm.volumes.geometry import to_world
from brainldm.volumes.grids import training_grid
from brainldm.volumes.headers import is_image_name
from brainldm.volumes.nifti import Volume, read_volume

SURFACES = ("head", "tissue", "white", "ventricles")
TISSUE_ML = (500.0, 2200.0)
"""Grey and white matter of a whole adult brain, with room on both sides."""
LEAST_VENTRICLES_ML = 2.0
STEP_MM = 0.1
"""Of the stored distances, which end at 12.7 mm."""
_CLOSED_MM = 8.0
"""Gaps of fluid that a map without a label for it leaves between gyri are at most twice as wide."""
_RIM_MM = 2.0
"""Fluid between the brain and the skull, where a map does not label it: of two maps that do, without their labels, it
gives shares of tissue in the head of 0.80 and 0.66, and with them 0.80 and 0.63."""
LEAST_FLUID = 0.1
"""Of the tissue's volume: a map with less labels the fluid in the brain alone."""
_FLUID_MM = 12.0
"""Fluid farther off the cerebrum and the cerebellum is that along the spinal cord."""


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """A checked label map: its file, and the ventricles' volume as a share of the grey and white matter's.

    `tissue_share` is that of grey and white matter in the head, None for a map that does not label the fluid between
    gyri.
    """

    path: Path
    ventricle_share: float
    tissue_share: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Surfaces:
    """A label map on the 1 mm training grid; arrays [D, H, W], of memory-mapped files.

    `distances` int8 for each of SURFACES, in STEP_MM; `paint` int8, hundredths by which the structure is whiter than
    grey or white matter, whichever it is; `structures` uint8, numbers of `label_table.NAMES`, 0 outside.
    """

    distances: tuple[np.ndarray, ...]
    paint: np.ndarray
    structures: np.ndarray


def find_label_maps(folder: str | Path) -> list[LabelMap]:
    """The label maps in a folder (.nii, .nii.gz, .mgz), by name, each one read and checked.

    Raises UserError for a folder without any, and as `read_labels` does.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give a folder of label maps with the numbers of FreeSurfer.")
    paths = sorted(path for path in folder.iterdir() if is_image_name(path.name) and not path.name.startswith("."))
    if not paths:
        raise UserError(
            f"{folder}: no label maps (.nii, .nii.gz, .mgz) in this folder. Give the folder that holds them itself; "
            "folders inside it are not searched."
        )
    return [_checked(path) for path in paths]


def _checked(path: Path) -> LabelMap:
    labels, affine = read_labels(path)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    counts = np.bincount(table.kinds()[labels].ravel(), minlength=5) * voxel_ml
    tissue_ml, ventricles_ml = float(counts[table.GREY] + counts[table.WHITE]), float(counts[table.VENTRICLE])
    if ventricles_ml < LEAST_VENTRICLES_ML:
        raise UserError(
            f"{path}: {ventricles_ml:.1f} mL of lateral ventricles (labels 4 and 43), so there is nothing that could "
            f"be widened. Each map needs {LEAST_VENTRICLES_ML:g} mL and more; leave this one out."
        )
    if not TISSUE_ML[0] <= tissue_ml <= TISSUE_ML[1] or min(counts[table.GREY], counts[table.WHITE]) < 100:
        raise UserError(
            f"{path}: {counts[table.GREY]:.0f} mL of grey and {counts[table.WHITE]:.0f} mL of white matter; a whole "
            f"brain has {TISSUE_ML[0]:g} to {TISSUE_ML[1]:g} mL of the two and at least 100 mL of each. Give maps of "
            "whole brains with cortex (3, 42) and white matter (2, 41)."
        )
    fluid_ml = float(counts[table.FLUID])
    share = tissue_ml / (tissue_ml + ventricles_ml + fluid_ml) if fluid_ml > LEAST_FLUID * tissue_ml else None
    return LabelMap(path, ventricles_ml / tissue_ml, share)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 [D, H, W] in RAS order and their affine [4, 4].

    Raises UserError for a file that is no readable image of known orientation, no label map, or that has numbers which
    the table of structures does not have.
    """
    volume = read_volume(path)
    labels = np.rint(volume.data).astype(np.int32)
    if np.abs(volume.data - labels).max() > 1e-3 or labels.min() < 0:
        raise UserError(f"{path}: values that are no whole numbers from 0 on, so this is no label map. Leave it out.")
    counts = np.bincount(np.minimum(labels, table.LARGEST).ravel(), minlength=table.LARGEST + 1)
    unknown = np.flatnonzero(counts[:-1] * (table.kinds() < 0)).tolist()
    if counts[-1]:
        unknown += np.unique(labels[labels >= table.LARGEST]).tolist()
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} labels that are no known structure, such as {', '.join(map(str, unknown[:5]))}. "
            "Label maps have the numbers of FreeSurfer's aseg, aparc+aseg or wmparc, or of SynthSeg. Give such maps, "
            "or set what has another number to 0 or to the structure that it is."
        )
    return labels, volume.affine


def prepare_label_map(label_map: LabelMap, registered: bool, target: Path) -> None:
    """Bring a map to the training box and write its surfaces to the new folder `target`, see `load_surfaces`.

    A T1w-like image painted by the labels is registered to the template, size included. With `registered` the map
    stays where it is. Raises UserError for a map that does not fit the template, and when SimpleITK is missing.
    """
    labels, affine = read_labels(label_map.path)
    part = _cropped(table.kinds()[labels], affine)
    affine = affine.copy()
    affine[:3, 3] = to_world(np.array([p.start for p in part]), affine)
    labels = labels[part]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    kind = table.kinds()[labels]
    white = kind == table.WHITE
    tissue = white | (kind == table.GREY)
    whiteness = table.whiteness()[labels]
    head = _head(labels, spacing)
    painted = np.where(tissue, 0.60 + 0.285 * whiteness, 0.18 * head).astype(np.float32)
    to_map, scale = _from_template(label_map.path, Volume(painted, affine), registered)
    grid = training_grid(1)
    matrix = np.linalg.inv(affine) @ to_map @ grid.affine
    target.mkdir()
    # In the order of SURFACES. White matter is told from grey matter only: its distance is measured inside the tissue.
    for name, inside in zip(SURFACES, (head, tissue, white, kind == table.VENTRICLE), strict=True):
        outward = ndimage.distance_transform_edt(~inside, spacing) - ndimage.distance_transform_edt(inside, spacing)
        # Half a voxel: the surface lies between the centres of voxels.
        distance = (outward - np.sign(outward) * spacing.mean() / 2).astype(np.float32)
        mapped = _read_at(distance, matrix, grid.shape, order=1, outside=127 * STEP_MM * scale) / (scale * STEP_MM)
        np.save(target / f"{name}.npy", np.clip(np.rint(mapped), -127, 127).astype(np.int8))
    paint = np.where(tissue, 100 * (whiteness - white), 0).astype(np.float32)
    paint = _read_at(paint, matrix, grid.shape, order=1, outside=0)
    np.save(target / "paint.npy", np.rint(paint).astype(np.int8))
    structures = _read_at(table.merged()[labels], matrix, grid.shape, order=0, outside=0)
    np.save(target / "structures.npy", structures)


def load_surfaces(folder: Path) -> Surfaces:
    """What `prepare_label_map` wrote to a folder, memory-mapped."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*SURFACES, "paint", "structures")}
    return Surfaces(tuple(arrays[name] for name in SURFACES), arrays["paint"], arrays["structures"])


def _cropped(kind: np.ndarray, affine: np.ndarray) -> tuple[slice, ...]:
    """The part of a map that holds its brain, with a margin: distances farther off are not needed."""
    margin = np.ceil(127 * STEP_MM / np.linalg.norm(affine[:3, :3], axis=0)).astype(int) + 1
    places = ndimage.find_objects((kind > table.FLUID).astype(np.uint8))[0]
    return tuple(slice(max(0, p.start - m), p.stop + m) for p, m in zip(places, margin, strict=True))


def _head(labels: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The inside of the skull: the brain with the gaps between gyri, and labelled fluid but that along the cord."""
    kind = table.kinds()[labels]
    brain = kind > table.FLUID
    margin = np.ceil(_CLOSED_MM / spacing).astype(int) + 1
    padded = np.pad(brain, [(m, m) for m in margin])
    away = ndimage.distance_transform_edt(~padded, spacing)
    closed = ndimage.distance_transform_edt(away <= _CLOSED_MM, spacing) > _CLOSED_MM
    if np.count_nonzero(kind == table.FLUID) <= LEAST_FLUID * np.count_nonzero(kind >= table.GREY):
        closed = ndimage.distance_transform_edt(~closed, spacing) <= _RIM_MM
    inner = tuple(slice(m, -m) for m in margin)
    above = brain & (table.merged()[labels] != table.BRAINSTEM)
    near_fluid = (kind == table.FLUID) & (ndimage.distance_transform_edt(~above, spacing) <= _FLUID_MM)
    return ndimage.binary_fill_holes(closed[inner] | brain | near_fluid)


def _from_template(path: Path, image: Volume, registered: bool) -> tuple[np.ndarray, float]:
    """World mm of the template to world mm of the map, size included, and that size."""
    try:
        found = assess_fit(image, "stripped") if registered else register(image, "stripped")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    least_similarity, least_overlap = (REGISTERED_LIMITS if registered else LIMITS)["stripped"]
    if found.similarity < least_similarity or found.overlap < least_overlap:
        raise UserError(
            f"{path}: the map does not fit the MNI152 template (similarity {found.similarity:.2f} of at least "
            f"{least_similarity}, overlap {found.overlap:.2f} of at least {least_overlap}). Its axes may be wrong, or "
            "part of the brain is missing. Look at it beside the template, and leave it out or correct its header."
        )
    centre = template_reference(True).centre
    grown = np.eye(4)
    grown[:3, :3] *= found.scale
    grown[:3, 3] = centre - found.scale * centre
    return np.linalg.inv(found.scan_to_template) @ grown, found.scale


def _read_at(data: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], order: int, outside: float) -> np.ndarray:
    return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], shape, order=order, cval=outside)
