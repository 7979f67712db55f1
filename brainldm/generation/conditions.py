"""The conditions of the brains to generate: drawn, read from a table, and held against what the model knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.datasets.bids import read_participants
from brainldm.datasets.covariates import Covariates
from brainldm.runtime.errors import UserError

FARTHEST = 100.0
"""Normalised conditions beyond this (0 to 1 is the model's range) are a slip of the pen, not an extrapolation."""


def draw_conditions(
    covariates: Covariates, count: int, seed: int, fixed: Mapping[str, str], subset: bool = False
) -> list[dict[str, float | str]]:
    """`count` rows of conditions. `fixed` holds, by name, a value ("70", "F") or a range ("60:75").

    A condition with a range is drawn uniformly from it, and one that is not named from what the model was trained on
    (its whole range, for a model that does not say); with `subset` it is left out. Row k depends on (seed, k) alone.
    Raises UserError for a name or value that the model does not understand.
    """
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
    rows = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        row: dict[str, float | str] = {}
        for item in covariates:
            fraction = rng.random()  # drawn for every condition, so that fixing one leaves the others as they were
            if item.name in values:
                row[item.name] = values[item.name]
            elif subset and item.name not in bounds:
                continue
            elif item.levels is not None:
                row[item.name] = item.at(fraction)
            else:
                low, high = bounds.get(item.name, item.limits)
                row[item.name] = _rounded(low + fraction * (high - low), low, high)
        rows.append(row)
    return rows


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


def check_conditions(
    rows: Sequence[Mapping[str, Any]], covariates: Covariates, extrapolate: bool, subset: bool = False
) -> list[bool]:
    """Which rows lie outside what the model knows.

    Raises UserError for the first unless `extrapolate`, and for one that lacks a condition unless `subset`.

    Outside is what no training scan reached or, for a model that does not say what these were, its range. A value so
    far off that it cannot be meant is refused all the same.
    """
    flags = []
    for number, row in enumerate(rows):
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
