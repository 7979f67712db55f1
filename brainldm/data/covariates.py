"""The conditions of a brain: names, units, ranges, and the one place that codes them into [0, 1].

People speak years, F or M and millilitres. Networks see a vector with one number per condition: continuous ones
min-max scaled by their range, sex as F = 0 and M = 1, in the order of the released brain LDM (Pinaya et al. 2022):
sex, age, ventricular volume, brain volume.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainldm.errors import UserError

_SEX_WORDS = {"f": "F", "female": "F", "m": "M", "male": "M"}
_MISSING = {"", "n/a", "na", "nan", "none", "null"}


@dataclasses.dataclass(frozen=True)
class Covariate:
    """One condition: `name` of its column, `unit`, and the range `low`..`high` that is scaled to 0..1.

    A condition with `levels` (two words, coded 0 and 1) has no range.
    """

    name: str
    unit: str
    description: str
    low: float = 0.0
    high: float = 1.0
    levels: tuple[str, str] | None = None

    def parse(self, value: Any, where: str) -> float | str:
        """`value` (text or number) as a number in this unit, or as one of the levels.

        Raises UserError that names `where` when it is missing or cannot be understood.
        """
        text = str(value).strip()
        if text.lower() in _MISSING:
            raise UserError(f"{where}: {self.name} is missing. Fill it in, or leave this participant out.")
        if self.levels is not None:
            word = _SEX_WORDS.get(text.lower(), text) if self.name == "sex" else text
            if word not in self.levels:
                raise UserError(
                    f"{where}: {self.name} is {text!r}, which could mean anything. "
                    f"Write {self.levels[0]} or {self.levels[1]}."
                )
            return word
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{where}: {self.name} is {text!r}, not a number. Give it in {self.unit}.")
        return number

    def encode(self, value: float | str) -> float:
        """The code of a parsed value: 0..1 inside the range."""
        if self.levels is not None:
            return float(self.levels.index(value))
        return (float(value) - self.low) / (self.high - self.low)

    def decode(self, code: float) -> float | str:
        """The value whose code this is (levels: the nearer one)."""
        if self.levels is not None:
            return self.levels[int(code >= 0.5)]
        return self.low + float(code) * (self.high - self.low)

    def contains(self, value: float | str) -> bool:
        """Whether a parsed value lies in the range (levels always do)."""
        return self.levels is not None or self.low <= float(value) <= self.high


SEX = Covariate("sex", "", "biological sex; F is coded 0, M is coded 1", levels=("F", "M"))
AGE = Covariate("age", "years", "age at scan", 44.0, 82.0)
VENTRICLES = Covariate(
    "ventricles_ml",
    "mL",
    "volume of the ventricular cerebrospinal fluid (as UK Biobank field 25004)",
    6.99568,
    171.375,
)
BRAIN = Covariate(
    "brain_ml",
    "mL",
    "grey and white matter, normalised for head size (as UK Biobank field 25009)",
    1144.24,
    1793.91,
)


@dataclasses.dataclass(frozen=True)
class Covariates:
    """The ordered set of conditions of a model; `len` is the width of its condition vector."""

    items: tuple[Covariate, ...] = (SEX, AGE, VENTRICLES, BRAIN)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, name: str) -> Covariate:
        for item in self.items:
            if item.name == name:
                return item
        raise UserError(f"There is no condition {name!r}. This model knows {', '.join(self.names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in the order of the condition vector."""
        return tuple(item.name for item in self.items)

    def parse(self, row: Mapping[str, Any], where: str) -> dict[str, float | str]:
        """The conditions of one table row, in their units. Raises UserError naming `where` and the column."""
        absent = [name for name in self.names if name not in row]
        if absent:
            raise UserError(
                f"{where}: no column {', '.join(absent)}. The conditions of this model are "
                f"{', '.join(self.names)}; add the missing column or change config.covariates."
            )
        return {item.name: item.parse(row[item.name], where) for item in self.items}

    def encode(self, rows: Sequence[Mapping[str, float | str]]) -> np.ndarray:
        """Condition vectors of parsed rows, float32 [N, len(self)]."""
        codes = [[item.encode(row[item.name]) for item in self.items] for row in rows]
        return np.asarray(codes, np.float32).reshape(len(rows), len(self))

    def decode(self, codes: np.ndarray) -> list[dict[str, float | str]]:
        """Rows in physical units from condition vectors [N, len(self)]."""
        return [{item.name: item.decode(code) for item, code in zip(self.items, row, strict=True)} for row in codes]

    def outside(self, row: Mapping[str, float | str]) -> list[str]:
        """One phrase for each condition of a parsed row that lies outside its range."""
        return [
            f"{item.name} {row[item.name]:g} {item.unit} (range {item.low:g} to {item.high:g})"
            for item in self.items
            if not item.contains(row[item.name])
        ]

    def with_ranges(self, ranges: Mapping[str, Sequence[float]]) -> Covariates:
        """The same conditions with other ranges, {name: (low, high)}."""
        for name, (low, high) in ranges.items():
            if self[name].levels is not None or not low < high:
                raise UserError(f"config.covariates.ranges: {name} cannot have the range {low:g} to {high:g}.")
        items = [
            dataclasses.replace(item, low=float(ranges[item.name][0]), high=float(ranges[item.name][1]))
            if item.name in ranges
            else item
            for item in self.items
        ]
        return Covariates(tuple(items))

    def to_json(self) -> list[dict[str, Any]]:
        """A list of plain dictionaries, for a model folder."""
        return [dataclasses.asdict(item) for item in self.items]

    @classmethod
    def from_json(cls, items: Sequence[Mapping[str, Any]]) -> Covariates:
        """The reverse of `to_json`."""
        return cls(
            tuple(Covariate(**{**item, "levels": tuple(item["levels"]) if item["levels"] else None}) for item in items)
        )

    def column_descriptions(self) -> dict[str, dict[str, Any]]:
        """What participants.json says of each column (BIDS)."""
        described: dict[str, dict[str, Any]] = {}
        for item in self.items:
            entry: dict[str, Any] = {"Description": item.description}
            if item.unit:
                entry["Units"] = item.unit
            if item.levels:
                entry["Levels"] = {"F": "female", "M": "male"} if item.name == "sex" else dict.fromkeys(item.levels, "")
            described[item.name] = entry
        return described
