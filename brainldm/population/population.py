"""The embedded population: T1w-like brains with known covariates, made by warping the MNI template.

A stand-in for trying things out and for tests. No image shows a real person: one averaged anatomy is
deformed, every brain has its gyri, and nothing medical can be concluded from them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import brainldm
from brainldm.datasets import bids
from brainldm.datasets.covariates import Covariates
from brainldm.population.anatomy import Anatomy, Shape, Tissues, sample_shape
from brainldm.population.appearance import render_image
from brainldm.population.demographics import sample_conditions
from brainldm.runtime.errors import UserError
from brainldm.runtime.lock import new_folder
from brainldm.runtime.workers import begin_worker
from brainldm.volumes import nifti
from brainldm.volumes.grids import SPACE, Grid
from brainldm.volumes.template import COPYRIGHT_NOTICE

_DESCRIPTION = "brainldm embedded population: deformed template, no real person"

_VOLUME_TOLERANCE = 0.025
"""A ventricular volume farther from the asked one (relative) is corrected."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One made brain: `image`, `ventricles`, `tissue` are float32 [D, H, W] in 0..1 on the population's grid.

    `covariates` are what the image shows: age (years), sex (F or M), and ventricles_ml, brain_ml and head_ml
    measured on the deformed labels. brain_ml is normalised for head size: the tissue's share of head_ml times
    the template's intracranial volume. `requested` is what was asked, under the same names.
    `ventricles` and `tissue` (grey and white matter) are the parts of each voxel.
    """

    participant_id: str
    image: np.ndarray
    covariates: dict[str, Any]
    requested: dict[str, Any]
    ventricles: np.ndarray
    tissue: np.ndarray


class Population:
    """Makes the people of the embedded population at `spacing_mm` 1, 2 or 4; setting up takes seconds."""

    def __init__(self, spacing_mm: float = 4):
        self._anatomy = Anatomy(spacing_mm)

    @property
    def grid(self) -> Grid:
        """The grid of the images."""
        return self._anatomy.grid

    def sample_conditions(self, seed: int, index: int, **overrides: Any) -> dict[str, Any]:
        """The conditions asked of person `index`: age, sex, ventricles_ml, brain_ml, head_ml.

        `overrides` replace single conditions. Raises UserError for a combination that no head can hold.
        """
        return sample_conditions(_streams(seed, index)[0], self._anatomy.icv_ml, overrides)

    def make(self, seed: int, index: int, **overrides: Any) -> Subject:
        """Person `index` (from 0) of the population `seed`: the same arguments give the same voxels.

        `overrides` (age, sex, ventricles_ml, brain_ml, head_ml) change one condition and leave all chance as
        it is, for sweeps; only head_ml follows an asked sex. Raises UserError for a combination that no head
        can hold.
        """
        _, shape_stream, look_stream = _streams(seed, index)
        requested = self.sample_conditions(seed, index, **overrides)
        shape = sample_shape(shape_stream, self._anatomy, requested)
        tissues = self._fit(shape, requested)
        image = render_image(look_stream, self._anatomy, tissues, requested["age"])
        grid = self._anatomy.grid
        ventricles, tissue = (
            self._anatomy.to_grid(part, tissues.blocks) for part in (tissues.ventricles, tissues.tissue)
        )
        tissue_ml = float(tissue.sum(dtype=np.float64)) * grid.voxel_ml
        covariates = {
            "sex": requested["sex"],
            "age": requested["age"],
            "ventricles_ml": round(float(ventricles.sum(dtype=np.float64)) * grid.voxel_ml, 3),
            "brain_ml": round(tissue_ml / tissues.head_ml * self._anatomy.icv_ml, 3),
            "head_ml": round(tissues.head_ml, 3),
        }
        return Subject(participant_id(index), image, covariates, requested, ventricles, tissue)

    def _fit(self, shape: Shape, requested: dict[str, Any]) -> Tissues:
        """Tissues whose volumes are those asked: the predicted flow time, corrected once by what came out."""
        wanted = aimed = requested["ventricles_ml"]
        for _ in range(2):
            tissues = self._anatomy.deform(shape, aimed, requested["brain_ml"])
            measured = tissues.ventricles_ml
            if abs(measured / wanted - 1) < _VOLUME_TOLERANCE:
                break
            aimed *= wanted / measured
        return tissues


@functools.lru_cache(maxsize=1)
def population_of(spacing_mm: float) -> Population:
    """`Population(spacing_mm)`, set up once per process; the last one is kept."""
    return Population(spacing_mm)


def participant_id(index: int) -> str:
    """`sub-0001` for index 0."""
    return f"sub-{index + 1:04d}"


def write_population(
    out: str | Path,
    n: int,
    spacing_mm: float = 4,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write people 0..n-1 of population `seed` as a BIDS dataset in the new folder `out`.

    Images go to sub-0001/anat/sub-0001_space-MNI152NLin2009aSym_T1w.nii.gz and the measured covariates to
    participants.tsv, which is written last: a folder without it is incomplete. `progress(done, n)` is called
    after each person. The bytes of a person's image depend on seed, index and spacing alone, not on `n` or
    `workers`. Raises UserError when `out` holds anything already, or for a spacing that does not exist.
    """
    _require_counts(n, workers)
    with new_folder(out) as out:
        people: dict[int, dict[str, Any]] = {}

        def note(index: int, row: dict[str, Any]) -> None:
            people[index] = row
            if progress is not None:
                progress(len(people), n)

        if workers == 1:
            population = population_of(spacing_mm)
            for index in range(n):
                note(index, _write_person(population, out, seed, index))
        else:
            _write_in_processes(out, n, spacing_mm, seed, workers, note)
        bids.write_dataset_files(
            out,
            name="brainldm embedded population (deformed template, not real people)",
            rows=[people[index] for index in range(n)],
            columns=_columns(),
            generated_by={
                "Name": "brainldm",
                "Version": brainldm.__version__,
                "Description": f"embedded population, seed {seed}, {spacing_mm:g} mm",
            },
            extra={"EmbeddedPopulation": True},
            sidecar={"Description": _DESCRIPTION, "SkullStripped": True, "SpatialReference": SPACE},
            readme=_README.format(n=n, spacing=spacing_mm, seed=seed, notice=COPYRIGHT_NOTICE),
        )


def _write_in_processes(
    out: Path, n: int, spacing_mm: float, seed: int, workers: int, note: Callable[[int, dict[str, Any]], None]
) -> None:
    # spawn: a forked child of a process that runs JAX or other threads can hang
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, n), context, initializer=begin_worker) as pool:
        try:
            waiting = {pool.submit(_write_in_worker, spacing_mm, out, seed, index): index for index in range(n)}
            for done in concurrent.futures.as_completed(waiting):
                note(waiting[done], done.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_in_worker(spacing_mm: float, out: Path, seed: int, index: int) -> dict[str, Any]:
    return _write_person(population_of(spacing_mm), out, seed, index)


def _write_person(population: Population, out: Path, seed: int, index: int) -> dict[str, Any]:
    subject = population.make(seed, index)
    nifti.write_volume(
        bids.image_path(out, subject.participant_id, SPACE),
        subject.image,
        population.grid.affine,
        description=_DESCRIPTION,
    )
    return {"participant_id": subject.participant_id, **subject.covariates}


def _columns() -> dict[str, dict[str, Any]]:
    return {
        **Covariates().column_descriptions(),
        "head_ml": {"Description": "volume inside the skull, as deformed", "Units": "mL"},
    }


def _streams(seed: int, index: int) -> list[np.random.Generator]:
    """Independent random streams of one person for conditions, shape and look."""
    return np.random.default_rng([seed, index]).spawn(3)


def _require_counts(n: int, workers: int) -> None:
    if n < 1 or workers < 1:
        raise UserError(
            f"A population of {n} people cannot be written by {workers} processes: both numbers start at 1. "
            "Ask for at least one of each."
        )


_README = """Embedded population of brainldm: {n} made brains, {spacing:g} mm, seed {seed}

These are not real people. Every image is the ICBM 152 template (MNI152, nonlinear symmetric, 2009a) deformed,
with ventricles, brain volume, contrast and noise set by sampled covariates. The population is a stand-in for
trying things out and for tests; nothing medical can be concluded from it.

participants.tsv gives the volumes measured on the deformed labels.

The template: {notice}.
"""
