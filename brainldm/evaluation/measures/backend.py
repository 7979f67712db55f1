"""What a backend of `brainldm measure` is: one image in, the volumes of its structures and a label map out."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np

from brainldm.volumes.grids import Grid

VENTRICLES, BRAIN, ICV = "ventricles_ml", "brain_ml", "icv_ml"
TOTALS = (VENTRICLES, BRAIN, ICV)
"""Volumes that every backend has a column for, with a value where it can measure them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What was found in one image.

    `volumes_ml`: mL by column, those of `Backend.columns`; NaN where one could not be measured, with the `reason`.
    `labels`: int16 [D, H, W] on the image's grid, 0 outside (None unless asked).
    """

    volumes_ml: Mapping[str, float]
    labels: np.ndarray | None = None
    reason: str = ""


class Backend(abc.ABC):
    """A measure of volumes.

    `name` and `sha256` (of the weights, None without weights) say which; `structures` are its labels and their names,
    as `left lateral ventricle`; `columns` are the volumes that it gives and what they are.
    """

    name: str
    sha256: str | None = None
    structures: Mapping[int, str]
    columns: Mapping[str, str]

    @abc.abstractmethod
    def __call__(self, image: np.ndarray, grid: Grid, labels: bool = False) -> Measured:
        """Measure one skull-stripped T1w volume [D, H, W] in RAS order, intensities about 0 to 1.

        An image without a brain gives NaN and a reason. Raises UserError for a grid that the backend cannot take.
        """


def column_of(structure: str) -> str:
    """The column of a structure: "left lateral ventricle" -> "left_lateral_ventricle_ml"."""
    return "_".join(structure.lower().replace("-", " ").split()) + "_ml"


def nothing(backend: Backend, image: np.ndarray, labels: bool, reason: str) -> Measured:
    """The result for an image in which nothing can be measured."""
    empty = np.zeros(image.shape, np.int16) if labels else None
    return Measured(dict.fromkeys(backend.columns, float("nan")), empty, reason)
