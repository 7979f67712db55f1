"""What a backend of `brainldm measure` is: one image in, the volumes of its structures and a label map out."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np

from brainldm.volumes.grids import Grid

VENTRICLES, BRAIN, TISSUE, ICV = "ventricles_ml", "brain_ml", "tissue_ml", "icv_ml"


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """What is measured: a skull-stripped T1w volume `data` [D, H, W] in RAS order, intensities about 0 to 1.

    `people`: it shows a person or comes from a model that learnt from people, else the embedded population. `scale` is
    the size of the brain relative to the template's along one axis, None where it is not known.
    """

    data: np.ndarray
    grid: Grid
    people: bool = True
    scale: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What was found in one image.

    `volumes_ml`: mL by column, for all of `Backend.columns`; NaN where it cannot be known. `labels`: int16 [D, H, W] on
    the image's grid, 0 outside; None unless asked, and where nothing was measured. `reason`: why that is so, or "".
    """

    volumes_ml: Mapping[str, float]
    labels: np.ndarray | None = None
    reason: str = ""


class Backend(abc.ABC):
    """A measure of volumes.

    `name` and `sha256` (of the weights; None without any) say which; `structures` are its labels and what they are, as
    `left lateral ventricle`; `columns` are the volumes that it gives and what they are. One that `needs_stripped`
    cannot take a whole head.
    """

    name: str
    sha256: str | None = None
    structures: Mapping[int, str]
    columns: Mapping[str, str]
    needs_stripped: bool = False

    @property
    def label(self) -> str:
        """The name as a BIDS label, letters and digits alone."""
        return "".join(character for character in self.name if character.isalnum())

    @abc.abstractmethod
    def __call__(self, image: Image, labels: bool = False) -> Measured:
        """Measure one image. One without a brain gives NaN and a reason; UserError for a grid that cannot be taken."""

    def nothing(self, reason: str) -> Measured:
        """The result for an image in which nothing can be measured."""
        return Measured(dict.fromkeys(self.columns, float("nan")), None, reason)


TOTALS = {
    BRAIN: "brain tissue, normalised for head size (in people: by the cube of the registration's scale)",
    TISSUE: "brain tissue as imaged, not normalised for head size",
}


def normalised(tissue_ml: float, scale: float | None) -> float:
    """A volume as imaged, normalised for head size; NaN where `scale` is not known."""
    return tissue_ml / scale**3 if scale else float("nan")


def column_of(structure: str) -> str:
    """The column of a structure: "left lateral ventricle" -> "left_lateral_ventricle_ml"."""
    return "_".join(structure.lower().replace("-", " ").split()) + "_ml"
