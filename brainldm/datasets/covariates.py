"""The conditions of a brain: names, units, ranges, and the one place that normalises them to [0, 1].

People speak years, F or M and millilitres. Networks see a vector: continuous conditions min-max scaled by their range,
conditions with two levels as 0 and 1 (sex: F = 0, M = 1), with more levels one number per level, 1 for the one that
holds and 0 for the others. The order is that of the released brain LDM (Pinaya et al. 2022), sex, age, ventricular
volume, brain volume; further conditions follow.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import shown

SEX_WORDS = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
_MISSING = {"", ".", "n/a", "na", "nan", "none", "null", "#n/a", "missing"}
NOT_CONDITIONS = ("participant_id", "session_id", "split")
_EXTRA = re.compile(r"([^\s=|:\[\]]+)(?:\[([^\[\]]*)\])?=(.+)")


def is_missing(value: Any) -> bool:
    """Whether a cell of a table says that there is nothing to say."""
    return str(value).strip().lower() in _MISSING


@dataclasses.dataclass(frozen=True)
class Covariate:
    """One condition: `name` of its column, `unit`, and the range `low`..`high` that is scaled to 0..1.

    A condition with `levels` (two words or more) has no range. `observed` is what the training scans of a model
    reached, lowest and highest, where that is known.
    """

    name: str
    unit: str
    description: str
    low: float = 0.0
    high: float = 1.0
    levels: tuple[str, ...] | None = None
    observed: tuple[float, float] | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """What counts as inside: what was observed or, where that is not known, the range."""
        return self.observed or (self.low, self.high)

    @property
    def width(self) -> int:
        """How many numbers of the condition vector are this condition's: 1, or one per level of three or more."""
        return len(self.levels) if self.levels and len(self.levels) > 2 else 1

    def parse(self, value: Any, where: str) -> float | str:
        """`value` (text or number) as a number in this unit, or as one of the levels.

        Raises UserError that names `where` when it is missing or cannot be understood.
        """
        text = str(value).strip()
        if is_missing(text):
            fill = "Measure it" if self.name in (VENTRICLES.name, BRAIN.name) else "Fill it in"
            raise UserError(
                f"{where}: {self.name} is missing. {fill}, leave this participant out, or leave {self.name} out of "
                "config.covariates."
            )
        if self.levels is not None:
            word = _level(SEX_WORDS.get(text.lower(), text) if self.name == "sex" else text, self.levels)
            if word is None:
                known = ", ".join(self.levels[:-1])
                raise UserError(
                    f"{where}: {self.name} is {text!r}, which could mean anything. Write {known} or {self.levels[-1]}."
                )
            return word
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            unit = f" Give it in {self.unit}." if self.unit else ""
            raise UserError(f"{where}: {self.name} is {text!r}, not a number.{unit}")
        return number

    def encode(self, value: float | str) -> tuple[float, ...]:
        """The code of a parsed value, `width` numbers: 0..1 inside the range."""
        if self.levels is None:
            return ((float(value) - self.low) / (self.high - self.low),)
        place = self.levels.index(value)
        return tuple(float(place == k) for k in range(self.width)) if self.width > 1 else (float(place),)

    def decode(self, normalised: Sequence[float]) -> float | str:
        """The value whose `width` numbers these are (levels: the nearest one)."""
        if self.levels is None:
            return self.low + float(normalised[0]) * (self.high - self.low)
        return self.levels[int(np.argmax(normalised)) if self.width > 1 else int(normalised[0] >= 0.5)]

    def at(self, fraction: float) -> float | str:
        """The value at `fraction` (0 to below 1) of the way through the range or the levels."""
        if self.levels is None:
            return self.low + fraction * (self.high - self.low)
        return self.levels[min(int(fraction * len(self.levels)), len(self.levels) - 1)]

    def contains(self, value: float | str) -> bool:
        """Whether a parsed value lies in `limits` (levels always do)."""
        return self.levels is not None or self.limits[0] <= float(value) <= self.limits[1]

    @property
    def span(self) -> str:
        """In words: "F or M", "44 to 82 years"."""
        if self.levels is not None:
            return f"{', '.join(self.levels[:-1])} or {self.levels[-1]}"
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()


def _level(text: str, levels: Sequence[str]) -> str | None:
    """The level that `text` names, exactly, else but for case, else as the same number (1 and 1.0)."""
    if text in levels:
        return text
    same = [level for level in levels if level.casefold() == text.casefold()]
    same = same or [level for level in levels if as_number(level) == as_number(text)]
    return same[0] if len(same) == 1 else None


def as_number(text: str) -> float:
    """`text` as a number, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def person_in_words(row: Mapping[str, Any]) -> str:
    """What a row has of age and sex, such as "70 y F"; empty where it has neither."""
    age = f"{row['age']:.0f} y" if "age" in row else ""
    return " ".join(filter(None, (age, str(row.get("sex", "")))))


def parse_extra(text: str) -> Covariate:
    """A further condition from its text in a config: "NAME=LOW:HIGH", "NAME[UNIT]=LOW:HIGH" or "NAME=A|B|C".

    NAME is a column of participants.tsv. Raises UserError for anything else.
    """
    found = _EXTRA.fullmatch(text.strip())
    hint = "Write NAME=LOW:HIGH, NAME[unit]=LOW:HIGH or NAME=A|B|C, NAME being a column of participants.tsv."
    if not found:
        raise UserError(f"config.covariates.extra: {shown(text)} is no condition. {hint}")
    name, unit, rest = found[1], (found[2] or "").strip(), found[3]
    if name in NOT_CONDITIONS:
        raise UserError(f"config.covariates.extra: {name} says whose scan it is; it cannot be a condition.")
    if "|" in rest:
        levels = tuple(level.strip() for level in rest.split("|"))
        if len(set(levels)) < len(levels) or any(is_missing(level) for level in levels) or unit:
            raise UserError(
                f"config.covariates.extra: {shown(text)} needs different levels, none empty, no unit. {hint}"
            )
        return Covariate(name, "", f"column {name}", levels=levels)
    low, high = map(as_number, rest.partition(":")[::2])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"config.covariates.extra: {shown(text)} gives no range from a smaller to a larger number. {hint}"
        )
    return Covariate(name, unit, f"column {name}", low, high)


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
    """The ordered set of conditions of a model. `len` is their number, `width` that of the numbers that code them.

    Raises UserError when two have one name.
    """

    items: tuple[Covariate, ...] = (SEX, AGE, VENTRICLES, BRAIN)

    def __post_init__(self):
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise UserError(f"config.covariates: the condition {repeated[0]} is named twice. Leave one out.")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, name: str) -> Covariate:
        for item in self.items:
            if item.name == name:
                return item
        raise UserError(f"There is no condition {shown(name)}. This model knows {', '.join(self.names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in the order of the condition vector."""
        return tuple(item.name for item in self.items)

    @property
    def width(self) -> int:
        """Length of the condition vector: the context of the denoising network."""
        return sum(item.width for item in self.items)

    def parse(self, row: Mapping[str, Any], where: str, subset: bool = False) -> dict[str, float | str]:
        """The conditions of one table row, in their units. Raises UserError naming `where` and the column.

        With `subset` those that are missing are left out.
        """
        if subset:
            given = [item for item in self.items if not is_missing(str(row.get(item.name, "")))]
            return {item.name: item.parse(row[item.name], where) for item in given}
        absent = [name for name in self.names if name not in row]
        if absent:
            raise UserError(
                f"{where}: no column {', '.join(absent)}. The conditions of this model are "
                f"{', '.join(self.names)}; add the missing column or change config.covariates."
            )
        return {item.name: item.parse(row[item.name], where) for item in self.items}

    def encode(self, rows: Sequence[Mapping[str, float | str]]) -> np.ndarray:
        """Condition vectors of parsed rows, float32 [N, width]; NaN for what a row does not have."""
        normalised = [
            [
                value
                for item in self.items
                for value in (item.encode(row[item.name]) if item.name in row else (math.nan,) * item.width)
            ]
            for row in rows
        ]
        return np.asarray(normalised, np.float32).reshape(len(rows), self.width)

    def decode(self, normalised: np.ndarray) -> list[dict[str, float | str]]:
        """Rows in physical units from condition vectors [N, width]."""
        ends = np.cumsum([item.width for item in self.items]).tolist()
        slots = [(item, slice(end - item.width, end)) for item, end in zip(self.items, ends, strict=True)]
        return [{item.name: item.decode(row[columns]) for item, columns in slots} for row in normalised]

    def outside(self, row: Mapping[str, float | str]) -> list[str]:
        """One phrase for each condition of a parsed row that lies outside its limits."""

        def phrase(item: Covariate) -> str:
            limits = f"({'trained on' if item.observed else 'range'} {item.limits[0]:g} to {item.limits[1]:g})"
            return " ".join(filter(None, (item.name, f"{row[item.name]:g}", item.unit, limits)))

        return [phrase(item) for item in self.items if item.name in row and not item.contains(row[item.name])]

    def observed_in(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, list[float]]:
        """{name: [lowest, highest]} of the numbers in parsed rows, conditions with levels left out."""
        return {
            item.name: [min(row[item.name] for row in rows), max(row[item.name] for row in rows)]
            for item in self.items
            if item.levels is None and rows
        }

    def with_observed(self, observed: Mapping[str, Sequence[float]]) -> Covariates:
        """The same conditions with what the training scans reached, of `observed_in`."""
        return Covariates(
            tuple(
                dataclasses.replace(item, observed=tuple(map(float, observed[item.name])))
                if item.name in observed
                else item
                for item in self.items
            )
        )

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
        fields = [dataclasses.asdict(item) for item in self.items]
        return [{k: v for k, v in item.items() if k != "observed" or v is not None} for item in fields]

    @classmethod
    def from_json(cls, items: Sequence[Mapping[str, Any]]) -> Covariates:
        """The reverse of `to_json`."""
        return cls(
            tuple(
                Covariate(**{**item, **{k: tuple(item[k]) for k in ("levels", "observed") if item.get(k) is not None}})
                for item in items
            )
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
