"""The embedded population: T1w-like brains with known covariates, made by warping the MNI template.

A stand-in for trying things out and for tests. No image shows a real person: one averaged anatomy is
deformed, every brain has its gyri, and nothing medical can be concluded from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainldm
from brainldm.datasets import bids
from brainldm.population.anatomy import Anatomy
from brainldm.population.demographics import sample_conditions
from brainldm.population.subject import Subject, make_subject, streams
from brainldm.population.writing import columns, require_counts, sidecar, write_people
from brainldm.runtime.lock import new_folder
from brainldm.volumes.grids import Grid
from brainldm.volumes.template import COPYRIGHT_NOTICE

_DESCRIPTION = "brainldm embedded population: deformed template, no real person"


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
        return sample_conditions(streams(seed, index)[0], self._anatomy.icv_ml, overrides)

    def make(self, seed: int, index: int, **overrides: Any) -> Subject:
        """Person `index` (from 0) of the population `seed`: the same arguments give the same voxels.

        `overrides` (age, sex, ventricles_ml, brain_ml, head_ml) change one condition and leave all chance as
        it is, for sweeps; only head_ml follows an asked sex. Raises UserError for a combination that no head
        can hold.
        """
        return make_subject(self._anatomy, seed, index, self.sample_conditions(seed, index, **overrides))[0]


@functools.lru_cache(maxsize=1)
def population_of(spacing_mm: float) -> Population:
    """`Population(spacing_mm)`, set up once per process; the last one is kept."""
    return Population(spacing_mm)


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
    require_counts(n, workers)
    with new_folder(out) as out:
        rows = write_people(
            out,
            n,
            functools.partial(population_of, spacing_mm),
            seed,
            workers,
            _DESCRIPTION,
            progress,
        )
        bids.write_dataset_files(
            out,
            name="brainldm embedded population (deformed template, not real people)",
            rows=rows,
            columns=columns(),
            generated_by={
                "Name": "brainldm",
                "Version": brainldm.__version__,
                "Description": f"embedded population, seed {seed}, {spacing_mm:g} mm",
            },
            extra={"EmbeddedPopulation": True},
            sidecar=sidecar(_DESCRIPTION),
            readme=_README.format(n=n, spacing=spacing_mm, seed=seed, notice=COPYRIGHT_NOTICE),
        )


_README = """Embedded population of brainldm: {n} made brains, {spacing:g} mm, seed {seed}

These are not real people. Every image is the ICBM 152 template (MNI152, nonlinear symmetric, 2009a) deformed,
with ventricles, brain volume, contrast and noise set by sampled covariates. The population is a stand-in for
trying things out and for tests; nothing medical can be concluded from it.

participants.tsv gives the volumes measured on the deformed labels.

The template: {notice}.
"""
