"""How the columns of a participants table and the intensities of scans are distributed."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from brainldm.datasets.covariates import Covariate, Covariates, is_missing
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import round_significant

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
MOST_BINS = 24
LEVELS_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: how many of the scans have a value, and how the values lie.

    `kind` is "numbers", "levels", "text" (too many different words to count) or "empty". `range` is that of the model's
    condition and `outside` the share of the values beyond it; both are None for a column that is no condition. `odd`
    counts values that a condition cannot take.
    """

    name: str
    unit: str
    condition: bool
    kind: str
    n: int
    missing: int
    odd: int
    minimum: float | None = None
    median: float | None = None
    maximum: float | None = None
    range: tuple[float, float] | None = None
    outside: float | None = None
    levels: dict[str, int] | None = None
    histogram: dict[str, list[float]] | None = None


@dataclasses.dataclass(frozen=True)
class Intensities:
    """Voxel values of one scan: the smallest and the largest, and between them the inner PERCENTILES of the voxels
    above the smallest value; the mean of all; and `background`, the share of voxels that have the smallest value."""

    percentiles: tuple[float, ...]
    mean: float
    background: float


def describe_columns(rows: Sequence[Mapping[str, str]], covariates: Covariates) -> list[Column]:
    """Every column of `rows`, conditions first (also those that no row has), the others in order of appearance."""
    others = list(dict.fromkeys(name for row in rows for name in row if name not in covariates.names))
    columns = [_condition(item, [row.get(item.name) for row in rows]) for item in covariates]
    return columns + [_other(name, [row.get(name) for row in rows]) for name in others]


def _condition(item: Covariate, cells: Sequence[str | None]) -> Column:
    given = [cell for cell in cells if cell is not None and not is_missing(cell)]
    values, odd = [], 0
    for cell in given:
        try:
            values.append(item.parse(cell, ""))
        except UserError:
            odd += 1
    counts = {"n": len(values), "missing": len(cells) - len(given), "odd": odd}
    if item.levels is not None:
        found = Counter(values)
        levels = {level: found[level] for level in item.levels}
        return Column(item.name, item.unit, True, "levels" if values else "empty", **counts, levels=levels)
    if not values:
        return Column(item.name, item.unit, True, "empty", **counts, range=(item.low, item.high))
    outside = sum(not item.contains(value) for value in values) / len(values)
    return Column(
        item.name,
        item.unit,
        True,
        "numbers",
        **counts,
        range=(item.low, item.high),
        outside=round(outside, 6),
        **_numbers(values),
    )


def _other(name: str, cells: Sequence[str | None]) -> Column:
    given = [cell.strip() for cell in cells if cell is not None and not is_missing(cell)]
    counts = {"n": len(given), "missing": len(cells) - len(given), "odd": 0}
    if not given:
        return Column(name, "", False, "empty", **counts)
    try:
        values = [float(cell) for cell in given]
    except ValueError:
        values = []
    if values and all(map(math.isfinite, values)) and len(set(values)) > 2:
        return Column(name, "", False, "numbers", **counts, **_numbers(values))
    found = Counter(given)
    if len(found) > LEVELS_SHOWN:
        return Column(name, "", False, "text", **counts)
    levels = dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
    return Column(name, "", False, "levels", **counts, levels=levels)


def _numbers(values: Sequence[float]) -> dict:
    array = np.asarray(values, np.float64)
    bins = int(np.clip(2 * np.sqrt(array.size), 5, MOST_BINS))
    counts, edges = np.histogram(array, bins)
    return {
        "minimum": float(array.min()),
        "median": float(np.median(array)),
        "maximum": float(array.max()),
        "histogram": {"edges": [round_significant(edge) for edge in edges], "counts": counts.tolist()},
    }


def intensities(data: np.ndarray, voxels: int = 200_000) -> Intensities:
    """Of one volume; the inner percentiles come from about `voxels` of its voxels at even distances."""
    low, high = float(data.min()), float(data.max())
    flat = data.reshape(-1)
    step = max(1, flat.size // voxels)
    # Not in step with any side, or the sample would be a few planes of the volume.
    while step > 1 and any(side % step == 0 or step % side == 0 for side in data.shape):
        step += 1
    some = flat[::step]
    inside = some[some > np.float32(low)]
    inner = np.percentile(inside if inside.size else some, PERCENTILES[1:-1])
    values = (low, *(float(value) for value in inner), high)
    background = float(np.count_nonzero(data == np.float32(low)) / data.size)
    mean = float(data.mean(dtype=np.float64))
    return Intensities(
        tuple(round_significant(value) for value in values), round_significant(mean), round(background, 4)
    )


def spread(found: Sequence[Intensities]) -> dict[str, dict[str, float]]:
    """Over scans: smallest, median and largest of each percentile, of the mean and of the background share."""
    if not found:
        return {}
    rows = {f"p{p}": [one.percentiles[i] for one in found] for i, p in enumerate(PERCENTILES)}
    rows |= {"mean": [one.mean for one in found], "background": [one.background for one in found]}
    return {
        name: {"minimum": min(row), "median": float(np.median(row)), "maximum": max(row)} for name, row in rows.items()
    }
