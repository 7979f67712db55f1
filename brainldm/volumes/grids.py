"""Voxel grids: the training box at 1, 2 and 4 mm, all with the same field of view."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from brainldm.runtime.errors import UserError

BOX_MM = (160, 224, 160)
"""Field of view of the training box, in mm along x (left to right), y (back to front), z (bottom to top)."""

ORIGIN_1MM = (-80.0, -129.0, -75.0)
"""World coordinates (mm, MNI152NLin2009a) of the centre of the first voxel of the 1 mm grid."""

SPACINGS_MM = (1, 2, 4)

SPACE = "MNI152NLin2009aSym"
"""The standard space of the box, as BIDS calls it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid: `shape` (three ints) and `affine` [4, 4], voxel index to world mm (RAS)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel size along each axis, in mm, [3]."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_json(self) -> dict[str, Any]:
        """The grid as model.json holds it."""
        return {"shape": self.shape, "affine": self.affine.tolist(), "orientation": "RAS"}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Grid:
        """The reverse of `to_json`."""
        return cls(tuple(content["shape"]), np.asarray(content["affine"], np.float64))


def training_grid(spacing_mm: float = 1) -> Grid:
    """The 160 x 224 x 160 mm training box at `spacing_mm` (1, 2 or 4), RAS.

    A voxel of a coarser grid is centred on the block of 1 mm voxels that it replaces, so the field of view
    is the same at every spacing. Raises UserError for another spacing.
    """
    if spacing_mm not in SPACINGS_MM:
        raise UserError(
            f"No training grid has {spacing_mm} mm voxels: the 160x224x160 mm box is defined at "
            f"{', '.join(map(str, SPACINGS_MM))} mm. Choose one of these."
        )
    spacing = int(spacing_mm)
    affine = np.diag([spacing, spacing, spacing, 1.0]).astype(np.float64)
    affine[:3, 3] = np.asarray(ORIGIN_1MM) + (spacing - 1) / 2
    return Grid(tuple(side // spacing for side in BOX_MM), affine)
