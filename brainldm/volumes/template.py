"""The anatomy behind the embedded population: the ICBM 152 nonlinear symmetric template (2009a).

The files come inside the nilearn package, so nothing is downloaded.
Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University. Fonov et al. 2011, Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainldm.runtime.errors import BrainldmError, UserError
from brainldm.volumes.grids import Grid, training_grid
from brainldm.volumes.nifti import block_average, read_volume

COPYRIGHT_NOTICE = (
    "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, "
    "McGill University"
)
_FILE = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_INSIDE_A_VENTRICLE_MM = (9.0, 4.0, 18.0)
"""A point in the body of the right lateral ventricle (world mm), which picks it among the pools of CSF."""
_DEPTH_MM = 8
"""Sulci reach the brain surface, ventricles do not: CSF nearer to the surface than this is no ventricle."""


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """The template on one of the training grids; arrays [D, H, W] float32 in 0..1 unless said otherwise.

    `t1` is skull-stripped; `gm` and `wm` are tissue probabilities; `mask` (bool) is the inside of the skull,
    tissue and CSF; `ventricles` is the part of each voxel inside the two lateral ventricles; `icv_ml` is the
    volume of the mask at 1 mm.
    """

    t1: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    mask: np.ndarray
    ventricles: np.ndarray
    grid: Grid
    icv_ml: float


def load_template(spacing_mm: float = 1) -> Template:
    """The template in the training box at 1, 2 or 4 mm; coarser grids hold block averages of the 1 mm one.

    Raises UserError for another spacing or when nilearn is not installed.
    """
    grid = training_grid(spacing_mm)
    fine = training_grid(1)
    t1, gm, wm = (_place(name, fine) for name in ("t1", "gm", "wm"))
    mask = t1 > 0
    gm, wm = gm * mask, wm * mask
    ventricles = _lateral_ventricles(np.clip(mask - gm - wm, 0, 1), mask, fine)
    icv_ml = float(mask.sum()) * fine.voxel_ml
    factor = int(round(grid.spacing_mm[0]))
    t1, gm, wm, head, ventricles = (
        block_average(array.astype(np.float32), factor) for array in (t1, gm, wm, mask, ventricles)
    )
    return Template(t1, gm, wm, head > 0.5, ventricles, grid, icv_ml)


def _place(name: str, grid: Grid) -> np.ndarray:
    """A map of the template (uint8, 1 mm, RAS), cut and padded to `grid`, scaled to 0..1."""
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise UserError(
            "The embedded population is made from the MNI template that nilearn carries, and nilearn is not "
            "installed. Install it (pip install nilearn)."
        )
    path = Path(package.origin).parent / _FILE.format(name)
    if not path.exists():
        raise UserError(
            f"{path} is absent: this release of nilearn does not carry the ICBM 152 template. "
            "Install nilearn 0.10 or later from PyPI."
        )
    image = read_volume(path)
    source = image.data / 255.0
    offset = np.round(image.affine[:3, 3] - grid.affine[:3, 3]).astype(int)
    placed = np.zeros(grid.shape, np.float32)
    low = np.maximum(offset, 0)
    high = np.minimum(offset + source.shape, grid.shape)
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    taken = tuple(slice(a, b) for a, b in zip(low - offset, high - offset, strict=True))
    placed[inside] = source[taken]
    return placed


def _lateral_ventricles(csf: np.ndarray, mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The part of each voxel inside the lateral ventricles, from the CSF probability.

    The connected pool of deep CSF that holds a known point, with the partial voxels around it. The
    probability is an average over people, so its edge is steepened to that of one person.
    """
    deep = ndimage.distance_transform_edt(mask) > _DEPTH_MM
    pools, _ = ndimage.label((csf > 0.5) & deep)
    point = np.round(np.asarray(_INSIDE_A_VENTRICLE_MM) - grid.affine[:3, 3]).astype(int)
    pool = pools[tuple(point)]
    if pool == 0:
        raise BrainldmError("The template has no CSF where its lateral ventricles should be.")
    near = ndimage.binary_dilation(pools == pool, iterations=2)
    return np.clip((csf - 0.2) / 0.6, 0, 1).astype(np.float32) * near
