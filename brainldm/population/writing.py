"""A population as a BIDS dataset: people made one after another or in processes, the table last."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from brainldm.datasets import bids
from brainldm.datasets.covariates import Covariates
from brainldm.population.subject import Subject
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically
from brainldm.runtime.workers import begin_worker
from brainldm.volumes import nifti
from brainldm.volumes.grids import SPACE, Grid

LABEL = "population"
"""What the label maps are called: ..._desc-population_dseg.nii.gz, numbers in desc-population_dseg.tsv."""
_LARGEST_LABEL = 32767


class Maker(Protocol):
    """A population: `make` gives person `index` of population `seed`, the same voxels for the same arguments."""

    @property
    def grid(self) -> Grid: ...

    def make(self, seed: int, index: int) -> Subject: ...


def require_counts(n: int, workers: int) -> None:
    """Raise UserError for less than one person or process."""
    if n < 1 or workers < 1:
        raise UserError(
            f"A population of {n} people cannot be written by {workers} processes: both numbers start at 1. "
            "Ask for at least one of each."
        )


def write_people(
    out: Path,
    n: int,
    population: Callable[[], Maker],
    seed: int,
    workers: int,
    description: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write the images, and label maps where there are any, of people 0..n-1; the rows of their table.

    `population` gives the maker in whichever process asks, so it can be pickled and keeps what is dear to make.
    `description` goes into the headers. `progress(done, n)` is called after each person.
    """
    people: dict[int, dict[str, Any]] = {}

    def note(index: int, row: dict[str, Any]) -> None:
        people[index] = row
        if progress is not None:
            progress(len(people), n)

    if workers == 1:
        for index in range(n):
            note(index, _write_person(population, out, seed, index, description))
    else:
        tasks = {index: (population, out, seed, index, description) for index in range(n)}
        in_processes(workers, _write_person, tasks, note)
    return [people[index] for index in range(n)]


def in_processes(
    workers: int, work: Callable[..., Any], tasks: dict[int, tuple], note: Callable[[int, Any], None]
) -> None:
    """`note(index, work(*arguments))` for all tasks {index: arguments}, in the order in which they end."""
    # spawn: a forked child of a process that runs JAX or other threads can hang
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=begin_worker) as pool:
        try:
            waiting = {pool.submit(work, *arguments): index for index, arguments in tasks.items()}
            for done in concurrent.futures.as_completed(waiting):
                note(waiting[done], done.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def sidecar(description: str) -> dict[str, Any]:
    """What holds for every image of a population."""
    return {"Description": description, "SkullStripped": True, "SpatialReference": SPACE}


def write_label_names(out: Path, names: dict[int, str]) -> None:
    """The table of the numbers in the label maps of a dataset."""
    lines = ["index\tname", "0\tbackground", *(f"{number}\t{name}" for number, name in sorted(names.items()))]
    write_atomically(out / f"desc-{LABEL}_dseg.tsv", ("\n".join(lines) + "\n").encode())


def columns() -> dict[str, dict[str, Any]]:
    """What participants.json says of the columns of a population."""
    return {
        **Covariates().column_descriptions(),
        "head_ml": {"Description": "volume inside the skull, as deformed", "Units": "mL"},
    }


def _write_person(
    population: Callable[[], Maker], out: Path, seed: int, index: int, description: str
) -> dict[str, Any]:
    maker = population()
    subject = maker.make(seed, index)
    image = bids.image_path(out, subject.participant_id, SPACE)
    nifti.write_volume(image, subject.image, maker.grid.affine, description=description)
    if subject.labels is not None:
        nifti.write_volume(
            image.with_name(image.name.replace("_T1w", f"_desc-{LABEL}_dseg")),
            subject.labels.astype(np.int16),
            maker.grid.affine,
            description=description,
            scale_max=_LARGEST_LABEL,
        )
    return {"participant_id": subject.participant_id, **subject.covariates}
