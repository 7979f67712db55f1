"""People made from label maps of real brains: each one map, or two mixed, deformed and painted anew.

Unlike the embedded population, which is one anatomy, every person has gyri of their own. An image shows no scan of a
person, but the anatomy of one or two of those whose label maps these are.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

import brainldm
from brainldm.datasets import bids
from brainldm.population import label_table as table
from brainldm.population.anatomy import NODES, Anatomy, Tissues
from brainldm.population.deformation import random_field
from brainldm.population.demographics import sample_conditions
from brainldm.population.label_maps import (
    STEP_MM,
    LabelMap,
    Surfaces,
    find_label_maps,
    load_surfaces,
    prepare_label_map,
)
from brainldm.population.subject import Subject, make_subject, streams
from brainldm.population.writing import (
    columns,
    in_processes,
    require_counts,
    sidecar,
    write_label_names,
    write_people,
)
from brainldm.runtime.files import read_json
from brainldm.runtime.lock import new_folder
from brainldm.volumes.grids import ORIGIN_1MM, Grid, training_grid
from brainldm.volumes.template import Template, load_template

MIXED = 0.75
"""Share of the people that are of two maps, where there are two."""
_KIN = (0.5, 0.05)
"""Standard deviations by which a map may be off what is asked: logarithm of the ventricles' share, tissue's share."""
_PATCH_NODES, _SEAM = 7.0, 4.0
"""Size of the regions taken from one of two maps, in nodes of 4 mm, and how steeply one becomes the other."""
_DRAWN = "maps.json"

BLUR = {1: 0.55}
"""Point spread by spacing in mm, in voxels. With it the share of high frequencies is that of real scans at 1 mm (0.02);
at 2 and 4 mm it is without any (0.04), because a voxel is a mean there."""


class LabelPopulation:
    """Makes people of the label maps that `prepare` left in `folder`, at `spacing_mm` 1, 2 or 4."""

    def __init__(self, folder: Path, spacing_mm: float):
        self._folder = folder
        self._grid = training_grid(spacing_mm)
        found = read_json(folder / _DRAWN)
        self._shares, self._icv_ml = found["shares"], found["reference_icv_ml"]

    @property
    def grid(self) -> Grid:
        """The grid of the images."""
        return self._grid

    def make(self, seed: int, index: int, **overrides: Any) -> Subject:
        """Person `index` (from 0) of the population `seed`: the same arguments give the same voxels.

        `overrides` (age, sex, ventricles_ml, brain_ml, head_ml) replace conditions. Raises UserError for a combination
        that no head can hold.
        """
        conditions, _, _, anatomy_stream = streams(seed, index)
        requested = sample_conditions(conditions, self._icv_ml, overrides)
        drawn = draw_maps(anatomy_stream, self._shares, requested, self._icv_ml)
        surfaces = [load_surfaces(self._folder / str(number)) for number in drawn]
        template, structures = mixed(anatomy_stream, surfaces)
        anatomy = Anatomy(self._grid.spacing_mm[0], template, self._icv_ml)
        subject, tissues = make_subject(anatomy, seed, index, requested, BLUR.get(int(self._grid.spacing_mm[0]), 0.0))
        labels = _label_map(anatomy, tissues, structures)
        return Subject(**{**vars(subject), "labels": labels})


def draw_maps(
    rng: np.random.Generator,
    shares: Sequence[Sequence[float | None]],
    person: Mapping[str, Any],
    reference_icv_ml: float,
) -> list[int]:
    """The numbers of the one or two maps that a person is made of.

    `shares` of each map: ventricles over tissue, and tissue over head or None. Maps that are near to what is asked are
    drawn more often, so that the deformation, which moves walls but has no gyri of its own, has less to do.
    """
    ventricles = person["ventricles_ml"] * reference_icv_ml / person["head_ml"] / person["brain_ml"]
    tissue = person["brain_ml"] / reference_icv_ml
    apart = [
        (np.log(wide / ventricles) / _KIN[0], 0.0 if full is None else (full - tissue) / _KIN[1])
        for wide, full in shares
    ]
    weights = 1e-3 + np.exp(-0.5 * np.square(apart).sum(axis=1))
    mix, order = rng.random(), rng.random(len(shares))
    # Without replacement by weights: the largest of u^(1 / w) (Efraimidis and Spirakis 2006).
    ranked = np.argsort(np.log(order) / weights)[::-1]
    return [int(number) for number in ranked[: 2 if mix < MIXED else 1]]


def mixed(rng: np.random.Generator, surfaces: Sequence[Surfaces]) -> tuple[Template, np.ndarray]:
    """The anatomy of one map, or of two that take turns in regions of some 60 mm, and its structures [D, H, W] uint8.

    The signed distances are mixed, so that between two regions a gyrus of one goes over into a gyrus of the other.
    """
    grid = training_grid(1)
    one, other = surfaces[0], surfaces[-1]
    share = _regions(rng) if len(surfaces) > 1 else None

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a = a.astype(np.float32)
        return a if share is None else a + share * (b - a)

    head, tissue, white, ventricles = (
        STEP_MM * between(*pair) for pair in zip(one.distances, other.distances, strict=True)
    )
    mask = np.zeros(grid.shape, bool)
    # Free of head at the faces but the lower one: outside the box the nearest voxel counts.
    mask[2:-2, 2:-2, :-2] = head[2:-2, 2:-2, :-2] < 0
    tissue, white, ventricles = (np.clip(0.5 - distance, 0, 1) * mask for distance in (tissue, white, ventricles))
    ventricles *= 1 - tissue
    gm, wm = tissue * (1 - white), tissue * white
    paint = between(one.paint, other.paint) / 100
    structures = one.structures if share is None else np.where(share < 0.5, one.structures, other.structures)
    t1 = 0.18 * (1 - tissue) + 0.60 * gm + 0.885 * wm + 0.285 * paint * tissue
    icv_ml = float(mask.sum()) * grid.voxel_ml
    return Template((t1 * mask).astype(np.float32), gm, wm, mask, ventricles, grid, icv_ml), np.asarray(structures)


def _regions(rng: np.random.Generator) -> np.ndarray:
    """The share of the second of two maps, smooth and mostly 0 or 1, float32 on the 1 mm grid."""
    blocks = tuple(nodes - 1 for nodes in NODES)
    field = random_field(rng, blocks, _PATCH_NODES)[0] + rng.normal(0, 0.4)
    fine = ndimage.zoom(field, 4, order=1, mode="nearest", grid_mode=True)
    return (1 / (1 + np.exp(-_SEAM * fine))).astype(np.float32)


def _label_map(anatomy: Anatomy, tissues: Tissues, structures: np.ndarray) -> np.ndarray:
    """The structures of a person, uint8 [D, H, W].

    What a voxel is made of decides between fluid, ventricle and tissue, and between white matter and cortex, because
    these moved against the map: sulci open and close. The map says which structure it is.
    """
    last = np.asarray(structures.shape)[:, None] - 1
    index = np.rint(tissues.template_mm - np.asarray(ORIGIN_1MM, np.float32)[:, None]).astype(np.int32)
    found = structures[tuple(np.clip(index, 0, last))]
    labels = anatomy.most_common(found, tissues.blocks)
    right = anatomy.most_common((tissues.template_mm[0] > 0).astype(np.uint8), tissues.blocks) > 0
    head, tissue, ventricles, white = (
        anatomy.to_grid(part, tissues.blocks)
        for part in (tissues.head, tissues.tissue, tissues.ventricles, tissues.tissue * tissues.white)
    )
    fluid = head - tissue - ventricles
    most = np.argmax([1 - head, fluid, ventricles, tissue], axis=0)
    kind = table.kinds()[labels]
    side = np.where(right, table.RIGHT_WHITE, table.LEFT_WHITE).astype(np.uint8)
    whiter = 2 * white > tissue
    result = np.zeros_like(labels)
    result[most == 1] = np.where(kind == table.FLUID, labels, table.CSF)[most == 1]
    result[most == 2] = np.where(kind == table.VENTRICLE, labels, side + 2)[most == 2]
    deep = ((kind == table.GREY) | (kind == table.WHITE)) & ~np.isin(labels, _FOLDED)
    cerebellum = np.isin(labels, _FOLDED[4:])
    folded = side + np.where(cerebellum, 5, 0) + np.where(whiter, 0, 1)
    result[most == 3] = np.where(deep, labels, folded)[most == 3]
    return result


_FOLDED = (2, 3, 41, 42, 7, 8, 46, 47)
"""White matter and cortex of both sides, of the cerebrum and then of the cerebellum."""


@functools.lru_cache(maxsize=1)
def _population_of(folder: Path, spacing_mm: float) -> LabelPopulation:
    return LabelPopulation(folder, spacing_mm)


def prepare(
    maps: Sequence[LabelMap],
    folder: Path,
    people: Sequence[tuple[int, int]],
    registered: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Bring the maps that `people` (seed, index) are made of to the training box, in `folder` (some 30 MB each).

    With `registered` they lie in MNI152 space already. Raises UserError for a map that does not fit the template, and
    when SimpleITK is missing.
    """
    icv_ml = load_template(1).icv_ml
    shares = [(label_map.ventricle_share, label_map.tissue_share) for label_map in maps]
    used = set()
    for seed, index in people:
        conditions, _, _, anatomy_stream = streams(seed, index)
        used.update(draw_maps(anatomy_stream, shares, sample_conditions(conditions, icv_ml, {}), icv_ml))
    tasks = {number: (maps[number], registered, folder / str(number)) for number in sorted(used)}
    done = []

    def note(number: int, _: None) -> None:
        done.append(number)
        if progress is not None:
            progress(len(done), len(tasks))

    if workers == 1:
        for number, arguments in tasks.items():
            note(number, prepare_label_map(*arguments))
    else:
        in_processes(workers, prepare_label_map, tasks, note)
    (folder / _DRAWN).write_text(json.dumps({"shares": shares, "reference_icv_ml": icv_ml}))


def write_label_population(
    out: str | Path,
    labels: str | Path,
    n: int,
    spacing_mm: float = 4,
    seed: int = 0,
    workers: int = 1,
    registered: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write people 0..n-1 made of the label maps in the folder `labels` as a BIDS dataset in the new folder `out`.

    Layout as of `write_population`, with a label map beside each image and its names in desc-population_dseg.tsv.
    `progress(what, done, total)` is called after each map and each person. The voxels of a person depend on seed,
    index, spacing and the maps in the folder alone. Raises UserError when `out` holds anything already, for a spacing
    that does not exist, and for maps that cannot be used.
    """
    require_counts(n, workers)
    training_grid(spacing_mm)
    maps = find_label_maps(labels)

    def report(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress is not None else None

    with new_folder(out) as out, tempfile.TemporaryDirectory(prefix="brainldm-labels-") as prepared:
        folder = Path(prepared)
        prepare(maps, folder, [(seed, index) for index in range(n)], registered, workers, report("label maps"))
        maker = functools.partial(_population_of, folder, spacing_mm)
        description = "brainldm: made from label maps, no scan of a person"
        rows = write_people(out, n, maker, seed, workers, description, report("population"))
        write_label_names(out, table.NAMES)
        bids.write_dataset_files(
            out,
            name="brainldm population made from label maps (no scans)",
            rows=rows,
            columns=columns(),
            generated_by={
                "Name": "brainldm",
                "Version": brainldm.__version__,
                "Description": f"population of {len(maps)} label maps, seed {seed}, {spacing_mm:g} mm",
            },
            sidecar=sidecar(description),
            extra={"Synthetic": True, "LabelMaps": [label_map.path.name for label_map in maps]},
            readme=_README.format(n=n, spacing=spacing_mm, seed=seed, maps=len(maps)),
        )


_README = """Population made by brainldm from label maps: {n} made brains, {spacing:g} mm, seed {seed}

No image is a scan of a person. Each shows the anatomy of one of {maps} label maps, or of two mixed in regions,
deformed, with ventricles, brain volume, contrast and noise set by sampled covariates. The people of the label maps may
be recognisable by their anatomy: the terms of the label maps hold for these images too.

participants.tsv gives the volumes measured on the deformed labels; desc-population_dseg.tsv the names of the structures
in the label maps beside the images.
"""
