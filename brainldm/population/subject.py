"""One made brain, from an anatomy, what is asked of it, and chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from brainldm.population.anatomy import Anatomy, Shape, Tissues, sample_shape
from brainldm.population.appearance import render_image

_VOLUME_TOLERANCE = 0.025
"""A ventricular volume farther from the asked one (relative) is corrected."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One made brain: `image`, `ventricles`, `tissue` are float32 [D, H, W] in 0..1 on the population's grid.

    `covariates` are what the image shows: age (years), sex (F or M), and ventricles_ml, brain_ml and head_ml
    measured on the deformed labels. brain_ml is normalised for head size: the tissue's share of head_ml times
    the MNI template's intracranial volume. `requested` is what was asked, under the same names.
    `ventricles` and `tissue` (grey and white matter) are the parts of each voxel. `labels` uint8 [D, H, W] are the
    numbers of its structures, where the population knows them.
    """

    participant_id: str
    image: np.ndarray
    covariates: dict[str, Any]
    requested: dict[str, Any]
    ventricles: np.ndarray
    tissue: np.ndarray
    labels: np.ndarray | None = None


def streams(seed: int, index: int) -> list[np.random.Generator]:
    """Independent random streams of one person: conditions, shape, look and, where there are several, anatomy."""
    return np.random.default_rng([seed, index]).spawn(4)


def participant_id(index: int) -> str:
    """`sub-0001` for index 0."""
    return f"sub-{index + 1:04d}"


def make_subject(
    anatomy: Anatomy, seed: int, index: int, requested: Mapping[str, Any], blur: float = 0.0
) -> tuple[Subject, Tissues]:
    """Person `index` with the `requested` conditions (age, sex, ventricles_ml, brain_ml, head_ml), and its tissues.

    `blur` as in `render_image`.
    """
    _, shape_stream, look_stream, _ = streams(seed, index)
    shape = sample_shape(shape_stream, anatomy, requested)
    tissues = _fit(anatomy, shape, requested)
    image = render_image(look_stream, anatomy, tissues, requested["age"], blur)
    ventricles, tissue = (anatomy.to_grid(part, tissues.blocks) for part in (tissues.ventricles, tissues.tissue))
    tissue_ml = float(tissue.sum(dtype=np.float64)) * anatomy.grid.voxel_ml
    covariates = {
        "sex": requested["sex"],
        "age": requested["age"],
        "ventricles_ml": round(float(ventricles.sum(dtype=np.float64)) * anatomy.grid.voxel_ml, 3),
        "brain_ml": round(tissue_ml / tissues.head_ml * anatomy.reference_icv_ml, 3),
        "head_ml": round(tissues.head_ml, 3),
    }
    return Subject(participant_id(index), image, covariates, dict(requested), ventricles, tissue), tissues


def _fit(anatomy: Anatomy, shape: Shape, requested: Mapping[str, Any]) -> Tissues:
    """Tissues whose volumes are those asked: the predicted flow time, corrected once by what came out."""
    wanted = aimed = requested["ventricles_ml"]
    for _ in range(2):
        tissues = anatomy.deform(shape, aimed, requested["brain_ml"])
        measured = tissues.ventricles_ml
        if abs(measured / wanted - 1) < _VOLUME_TOLERANCE:
            break
        aimed *= wanted / measured
    return tissues
