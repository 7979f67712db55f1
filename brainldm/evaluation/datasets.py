"""The images of one dataset, read one at a time, on one grid."""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brainldm.data.pipeline import scale_intensities
from brainldm.datasets.bids import read_dataset, read_participants
from brainldm.datasets.covariates import Covariates, is_missing
from brainldm.datasets.scans import Scan
from brainldm.datasets.tables import Table
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json
from brainldm.runtime.format import format_shape
from brainldm.volumes.grids import SPACINGS_MM, Grid, training_grid
from brainldm.volumes.nifti import read_volume
from brainldm.volumes.on_grid import on_grid

_NOT_CONDITIONS = ("participant_id", "session_id", "extrapolated", "split")
_KEPT_BYTES = 2 * 2**30
STAND_IN = "embedded population"
"""In the description of a dataset whose images, or those that its model learnt from, show no real people."""


class Scans(Sequence):
    """Volumes [D, H, W] in [0, 1] of a dataset, read when asked for; up to 2 GiB of them are kept.

    `records` are its scans in the order of the volumes, `table` is its participants table. Synthetic volumes are
    clipped to [0, 1], real ones are scaled by their own minimum and maximum, as in training.
    """

    def __init__(self, records: Sequence[Scan], table: Table, grid: Grid, synthetic: bool):
        self.records, self.table, self.grid, self._synthetic = list(records), table, grid, synthetic
        kept = max(2, int(_KEPT_BYTES // (4 * np.prod(grid.shape))))
        self._read_kept = functools.lru_cache(maxsize=kept)(self._read)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read_kept(index)

    def values(self, name: str) -> np.ndarray:
        """The column `name` of every scan as floats, NaN where the dataset does not have it."""
        return np.array([float(record.covariates.get(name, np.nan)) for record in self.records])

    def _read(self, index: int) -> np.ndarray:
        path = self.records[index].path
        volume = read_volume(path)
        if _same(Grid(volume.data.shape, volume.affine), self.grid):
            data = volume.data
        elif not self._synthetic and any(_same(self.grid, training_grid(spacing)) for spacing in SPACINGS_MM):
            # A finer training grid covers the same box, and averages to this one as it does in training.
            data = on_grid(volume, self.grid, path)
        else:
            raise UserError(
                f"{path}: {_described(volume.data.shape, volume.affine)}, but the synthetic images have "
                f"{_described(self.grid.shape, self.grid.affine)}. Images are compared on one grid: give the real "
                "dataset that lies on the grid the model was trained on, and one synthetic dataset at a time."
            )
        return np.clip(data, 0, 1) if self._synthetic else scale_intensities(data, "minmax", path)


def open_datasets(synthetic: str | Path, real: str | Path) -> tuple[Scans, Scans]:
    """The images of a synthetic and of a real dataset, on the grid of the first synthetic image.

    Raises UserError when a dataset cannot be read, or the synthetic one says neither ventricles_ml nor brain_ml and
    not that its model takes no conditions, or that some were left out. An image on another grid raises when it is read.
    """
    tables = read_participants(synthetic), read_participants(real)
    said = description(synthetic)
    unconditional = said.get("Conditional") is False or said.get("ConditionsLeftOut") is True
    if not unconditional and not _filled(tables[0]) & {"ventricles_ml", "brain_ml"}:
        raise UserError(
            f"{Path(synthetic) / 'participants.tsv'}: neither ventricles_ml nor brain_ml among its columns, so what "
            "was asked of these brains is not known. Give a folder that `brainldm generate` wrote, or add the "
            "requested values."
        )
    made, people = (
        read_dataset(root, Covariates(tuple(item for item in Covariates() if item.name in _filled(table))))
        for root, table in zip((synthetic, real), tables, strict=True)
    )
    first = read_volume(made[0].path)
    grid = Grid(first.data.shape, first.affine)
    return Scans(made, tables[0], grid, synthetic=True), Scans(people, tables[1], grid, synthetic=False)


def description(root: str | Path) -> dict:
    """dataset_description.json of a dataset, empty when it has none that can be read."""
    try:
        return read_json(Path(root) / "dataset_description.json")
    except UserError:
        return {}


def is_stand_in(root: str | Path) -> bool:
    """Whether a dataset says that it is, or was learnt from, the embedded population.

    Its description says "EmbeddedPopulation": true, or its description or README names it.
    """
    said = description(root)
    if said.get("EmbeddedPopulation") is True:
        return True
    readme = Path(root) / "README"
    text = readme.read_text(errors="replace") if readme.is_file() else ""
    return STAND_IN in (json.dumps(said) + text).lower()


def conditions_in_words(scans: Mapping[str, Scans]) -> dict[str, dict[str, str]]:
    """What was asked of generated brains, column by column, and what real ones have: {column: {which: words}}.

    Words are "44 to 82 (n = 30)" or "F 12, M 18". Columns are those of the synthetic dataset's table; a real dataset
    may lack some.
    """
    names = [name for name in scans["synthetic"].table.columns if name not in _NOT_CONDITIONS]
    return {
        name: {which: _in_words(one.table.cells(name)) for which, one in scans.items() if name in one.table.columns}
        for name in names
    }


def _in_words(cells: Sequence[str]) -> str:
    given = [cell for cell in cells if not is_missing(cell)]
    try:
        numbers = [float(cell) for cell in given]
    except ValueError:
        counts = collections.Counter(given).most_common(8)
        return ", ".join(f"{cell} {count}" for cell, count in sorted(counts))
    return f"{min(numbers):g} to {max(numbers):g} (n = {len(numbers)})" if numbers else "none"


def _filled(table: Table) -> set[str]:
    """The columns of a table that hold anything."""
    return {name for name in table.columns if not all(map(is_missing, table.cells(name)))}


def _same(a: Grid, b: Grid) -> bool:
    return tuple(a.shape) == tuple(b.shape) and np.allclose(a.affine, b.affine, atol=1e-3)


def _described(shape: Sequence[int], affine: np.ndarray) -> str:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = format_shape(spacing)
    first = np.round(affine[:3, 3], 1).tolist()
    return f"{format_shape(shape)} voxels of {size} mm, the first at {first} mm"
