"""The conditions of the brains to generate: drawn, read from a table, and held against what the model knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.datasets.bids import read_participants
from brainldm.datasets.covariates import Covariate, Covariates
from brainldm.datasets.demography import Demography
from brainldm.datasets.scans import is_participant_id
from brainldm.generation.job import Row
from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import is_number, shown

MOST_SWEPT = 1000
MOST_SESSIONS = 99
_AT_ONCE = 4096
"""Rows that are drawn at once."""

FARTHEST = 100.0
"""Normalised conditions beyond this (0 to 1 is the model's range) are a slip of the pen, not an extrapolation."""


def draw_conditions(
    covariates: Covariates,
    count: int,
    seed: int,
    fixed: Mapping[str, str],
    demography: Demography | None = None,
    subset: bool = False,
    first: int = 0,
) -> list[dict[str, float | str]]:
    """`count` rows of conditions. `fixed` holds, by name, a value ("70", "F") or a range ("60:75").

    With a `demography` a condition with a range is drawn as its people have it within the range, and one that is not
    named as they have it given the others. Without one, each is drawn by itself and uniformly: from its range, or from
    what the model was trained on. With `subset` what is not named is left out. The rows are those from `first`
    on, and row k depends on (seed, k) alone. Raises UserError for a name or value that the model does not understand.
    """
    values, bounds = parse_fixed(covariates, fixed)
    if subset:
        rows = draw_conditions(covariates, count, seed, fixed, demography, first=first)
        return [{name: value for name, value in row.items() if name in fixed} for row in rows]
    if demography is None:
        return [_uniform(covariates, np.random.default_rng([seed, first + k]), values, bounds) for k in range(count)]
    rows, given = [], values | bounds
    shape = (demography.draws(given), len(covariates))
    for start in range(0, count, _AT_ONCE):
        streams = [np.random.default_rng([seed, first + k]) for k in range(start, min(start + _AT_ONCE, count))]
        uniform = np.stack([rng.random(shape) for rng in streams])
        drawn = demography.draw(uniform, given)
        for k, chance in enumerate(uniform[:, 0]):
            row = {name: column[k] for name, column in drawn.items()} | values
            rows.append({i.name: _settled(i, row[i.name], bounds, values, chance[n]) for n, i in enumerate(covariates)})
    return rows


def _settled(item: Covariate, value: float | str, bounds: Mapping, values: Mapping, chance: float) -> float | str:
    """A drawn value rounded, and inside the range that was asked for, also one that nobody reaches."""
    if item.name in values or item.levels is not None:
        return value
    low, high = bounds.get(item.name, item.limits)
    if not low <= value <= high and item.name in bounds and not (low <= item.limits[1] and item.limits[0] <= high):
        value = low + chance * (high - low)
    return _rounded(min(max(value, low), high), low, high)


def parse_fixed(
    covariates: Covariates, fixed: Mapping[str, str]
) -> tuple[dict[str, float | str], dict[str, tuple[float, float]]]:
    """What was asked of conditions, apart: values by name, and ranges by name. Raises UserError as draw_conditions."""
    bounds: dict[str, tuple[float, float]] = {}
    values: dict[str, float | str] = {}
    for name, text in fixed.items():
        item = covariates[name]
        low, colon, high = text.partition(":")
        if colon and item.levels is None:
            bounds[name] = (float(item.parse(low, "range")), float(item.parse(high, "range")))
            if bounds[name][0] > bounds[name][1]:
                raise UserError(f"{name} {text}: the range is upside down. Write the smaller number first.")
        else:
            values[name] = item.parse(text, "command line")
    return values, bounds


def _uniform(
    covariates: Covariates, rng: np.random.Generator, values: Mapping, bounds: Mapping
) -> dict[str, float | str]:
    row: dict[str, float | str] = {}
    for item in covariates:
        fraction = rng.random()  # drawn for every condition, so that fixing one leaves the others as they were
        if item.name in values:
            row[item.name] = values[item.name]
        elif item.levels is not None:
            row[item.name] = item.at(fraction)
        else:
            low, high = bounds.get(item.name, item.limits)
            row[item.name] = _rounded(low + fraction * (high - low), low, high)
    return row


def percentiles(covariates: Covariates, demography: Demography, fixed: Mapping[str, str]) -> list[str]:
    """A line for each number that was asked for, which says where it stands among people with the other values."""
    values, _ = parse_fixed(covariates, fixed)
    lines = []
    for item in covariates:
        if item.name in values and item.levels is None:
            others = {name: value for name, value in values.items() if name != item.name}
            share = demography.percentile(item.name, float(values[item.name]), others)
            rank = "below 1" if share < 1 else "above 99" if share > 99 else f"{share:.0f}"
            alike = ", ".join(f"{name} {value}" for name, value in others.items())
            unit = f" {item.unit}" if item.unit else ""
            lines.append(
                f"{item.name} {values[item.name]:g}{unit}: percentile {rank} of those trained on"
                + (f" with {alike}" if alike else "")
            )
    return lines


def sweep_conditions(
    covariates: Covariates, text: str, rows: Sequence[dict[str, float | str]]
) -> list[dict[str, float | str]]:
    """Each of `rows` once for every value of a sweep, "NAME=LOW:HIGH:COUNT" or "NAME=A|B|C", all else as it is.

    Raises UserError for a text that is neither, or of a condition that the model does not have.
    """
    name, _, rest = text.partition("=")
    item = covariates[name.strip()]
    parts = rest.split(":")
    if item.levels is not None and "|" in rest:
        values: list[float | str] = [item.parse(part, "--sweep") for part in rest.split("|")]
    elif item.levels is None and len(parts) == 3 and parts[2].isdigit() and 2 <= int(parts[2]) <= MOST_SWEPT:
        low, high = (float(item.parse(part, "--sweep")) for part in parts[:2])
        values = [round(value, 4) for value in np.linspace(low, high, int(parts[2])).tolist()]
    else:
        raise UserError(
            f"--sweep {text}: a number is swept as {name}=LOW:HIGH:COUNT (2 to {MOST_SWEPT} values), levels as "
            f"{name}=A|B."
        )
    return [{**row, item.name: value} for row in rows for value in values]


def parse_sessions(covariates: Covariates, text: str) -> tuple[str, list[float]]:
    """Of "NAME=V1,V2,...", the number that differs between the sessions of a person, and its values.

    Raises UserError for a text that is none, of a condition that the model does not have, or of values that do not
    rise.
    """
    name, _, rest = text.partition("=")
    item = covariates[name.strip()]
    parts = rest.split(",")
    values = [] if item.levels else [float(item.parse(part, "--sessions")) for part in parts]
    if not 2 <= len(values) <= MOST_SESSIONS or any(a >= b for a, b in itertools.pairwise(values)):
        raise UserError(
            f"--sessions {text}: a number of the model and its rising values are wanted, 2 to {MOST_SESSIONS} of them, "
            "as age=60,65,70."
        )
    return item.name, values


def session_conditions(
    covariates: Covariates, demography: Demography, name: str, values: Sequence[float], rows: Sequence[Row]
) -> list[dict[str, float | str]]:
    """Each of `rows`, a person, once for every value of `name`, with the other numbers carried along: see
    `Demography.carry`. Raises UserError for a row without `name`."""
    for number, row in enumerate(rows, 1):
        if name not in row:
            raise UserError(
                f"Person {number}: {name} is not given, so what the other conditions are at another is not known."
            )
    sessions = []
    for row, carried in zip(rows, demography.carry(rows, name, values), strict=True):
        for k, value in enumerate(values):
            changed = {
                other: _rounded(found[k], *_reach(covariates[other], row[other])) for other, found in carried.items()
            }
            sessions.append({**row, **(changed if value != row[name] else {}), name: value})
    return sessions


def _reach(item: Covariate, value: float) -> tuple[float, float]:
    """The limits of a condition, wide enough for a value that a person has."""
    return min(item.limits[0], value), max(item.limits[1], value)


def _rounded(value: float, low: float, high: float) -> float:
    """To thousandths, or finer where the range is narrow, and still inside it."""
    digits = max(3, 4 - math.floor(math.log10(high - low)) if high > low else 3)
    return min(max(round(value, digits), low), high)


def read_conditions(path: str | Path, covariates: Covariates, subset: bool = False) -> list[dict[str, float | str]]:
    """The conditions of a participants.tsv (or of the dataset that holds one), one row per brain wanted.

    With `subset` those that a row does not have are left out.
    """
    rows = read_participants(path).rows
    return [covariates.parse(row, f"{path}, {row['participant_id']}", subset) for row in rows]


def table_ids(path: str | Path) -> list[str] | None:
    """The participant_id of each row of a table, where each is a BIDS id and they differ; else None."""
    ids = [row["participant_id"] for row in read_participants(path).rows]
    return ids if len(set(ids)) == len(ids) and all(map(is_participant_id, ids)) else None


def _check_row(where: str, row: Any, covariates: Covariates) -> None:
    """Raise UserError for what is no dictionary, and for a condition that is no level or no finite number."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is {shown(row)}; a dictionary of conditions is wanted.")
    for item in covariates:
        if item.name not in row:
            continue
        value = row[item.name]
        if item.levels is not None and not (isinstance(value, str) and value in item.levels):
            raise UserError(f"{where}: {item.name} is {shown(value)}; {item.span} is wanted.")
        if item.levels is None and not is_number(value):
            raise UserError(f"{where}: {item.name} is {shown(value)}; a number is wanted, as {item.span}.")


def check_conditions(
    rows: Sequence[Mapping[str, Any]], covariates: Covariates, extrapolate: bool, subset: bool = False
) -> list[bool]:
    """Which rows lie outside what the model knows.

    Raises UserError for the first unless `extrapolate`, and for one that lacks a condition unless `subset`.

    Outside is what no training scan reached or, for a model that does not say what these were, its range. A value so
    far off that it cannot be meant is refused all the same.
    """
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence) or not rows:
        raise UserError(f"The rows are {shown(rows)}; a list with a dictionary of conditions for each brain is wanted.")
    flags = []
    for number, row in enumerate(rows):
        _check_row(f"Brain {number + 1}", row, covariates)
        absent = [name for name in covariates.names if name not in row]
        if absent and not subset:
            raise UserError(
                f"Brain {number + 1}: {', '.join(absent)} is not given, and this model needs all its conditions: "
                "it was trained without config.loss.covariate_dropout. Give every one."
            )
        outside = covariates.outside(row)
        if outside and not extrapolate:
            raise UserError(
                f"Brain {number + 1}: {'; '.join(outside)}. The model never saw such a brain. Ask for one inside the "
                "range, or pass --extrapolate to try all the same (it will be said in the output)."
            )
        with np.errstate(over="ignore"):
            normalised = covariates.encode([row])[0] if outside else np.zeros(1)
        normalised = normalised[~np.isnan(normalised)]
        if not np.isfinite(normalised).all() or np.abs(normalised).max() > FARTHEST:
            raise UserError(f"Brain {number + 1}: {'; '.join(outside)}. That is too far off to be meant.")
        flags.append(bool(outside))
    return flags
