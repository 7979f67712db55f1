"""What a column of a table means: which condition it is, in which unit and coding, and its values in ours."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from brainldm.datasets.covariates import SEX_WORDS, as_number, is_missing
from brainldm.runtime.errors import UserError

STANDARD = ("sex", "age", "ventricles_ml", "brain_ml")
MISSING = "n/a"

OLDEST_YEARS = 130
"""Ages above this are no years."""
PLAUSIBLE_ML = {"ventricles_ml": (0.5, 600.0), "brain_ml": (200.0, 3000.0)}
"""Where the median volume of a group of people lies; outside it the unit must be another."""

# UK Biobank data fields (https://biobank.ndph.ox.ac.uk/showcase): sex, age when attended assessment centre, volume of
# ventricular cerebrospinal fluid (mm3), volume of grey and white matter normalised for head size (mm3).
_FIELDS = {31: "sex", 21003: "age", 25004: "ventricles_ml", 25009: "brain_ml"}
_FIELD_NAME = re.compile(r"(?:participant\.)?(?:f\.|[fpnx]_?)?(\d+)(?:[-_.]i?(\d+)(?:[-_.]a?\d+)?)?", re.IGNORECASE)

_VENTRICLES = re.compile(r"(all_)?(lateral_)?ventric(le|les|ular)(_csf)?(_vol|_volume|_volumes)?|ventricular_volume")
_BRAIN = re.compile(r"(total_)?brain(_vol|_volume)?|brainvol")
_UNIT_AT_END = re.compile(r"_(ml|mm3|mm_3|cm3|cm_3|cc|l)$")
_ML_PER_UNIT = {"ml": 1.0, "cm3": 1.0, "cc": 1.0, "mm3": 1e-3, "l": 1000.0}
_UNIT_WORDS = {
    "millilitre": "ml",
    "milliliter": "ml",
    "cubic millimetre": "mm3",
    "cubic millimeter": "mm3",
    "cubic centimetre": "cm3",
    "cubic centimeter": "cm3",
    "litre": "l",
    "liter": "l",
}
_AGE = re.compile(
    r"age(_at_(scan|mri|imaging|visit|exam))?(_y|_yr|_yrs|_year|_years|_in_years|_months|_in_months|_mo)?"
)
_SEX = re.compile(r"(sex|gender)(_id|_code|_coded)?(_\d.*)?")
_CODED_IN_NAME = re.compile(r"(\d)\s*[=:]\s*([a-z]+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Known:
    """A recognised column: the standard `name`, and the UK Biobank `field` and `instance` when it has such a name."""

    name: str
    field: int | None = None
    instance: int | None = None


def plain(column: str) -> str:
    """A column name in small letters, its other characters as single underscores."""
    return re.sub(r"[^0-9a-z]+", "_", column.lower().replace("³", "3")).strip("_")


def recognise(column: str) -> Known | None:
    """The condition that a column of this name holds, or None."""
    numbered = _FIELD_NAME.fullmatch(column.strip())
    if numbered and int(numbered[1]) in _FIELDS:
        field = int(numbered[1])
        return Known(_FIELDS[field], field, int(numbered[2]) if numbered[2] else None)
    name = plain(column)
    if _SEX.fullmatch(name):
        return Known("sex")
    if _AGE.fullmatch(name):
        return Known("age")
    volume = _UNIT_AT_END.sub("", name)
    if _VENTRICLES.fullmatch(volume):
        return Known("ventricles_ml")
    return Known("brain_ml") if _BRAIN.fullmatch(volume) else None


def convert(
    name: str, column: str, field: int | None, cells: Sequence[str], described: Mapping[str, Any]
) -> tuple[list[str], dict[int, str], str]:
    """The cells of `column` as the standard condition `name`.

    `described` is what the table's JSON says of the column (Units, Levels). Returns the values as text ("n/a" where
    missing; a cell that means nothing stays as it is), what is wrong by row number, and a note (or "").
    Raises UserError when unit or coding cannot be known.
    """
    if all(is_missing(cell) for cell in cells):
        return [MISSING] * len(cells), {}, ""
    if name == "sex":
        return _convert_sex(column, field, cells, described)
    numbers = [as_number(cell) for cell in cells]
    if name == "age":
        return _convert_age(column, cells, numbers, described)
    return _convert_volume(name, column, field, cells, numbers, described)


def _convert_sex(
    column: str, field: int | None, cells: Sequence[str], described: Mapping[str, Any]
) -> tuple[list[str], dict[int, str], str]:
    meaning: dict[str, str] = {}
    how = ""
    levels = described.get("Levels")
    if isinstance(levels, Mapping):
        for code, entry in levels.items():
            word = entry.get("Description", "") if isinstance(entry, Mapping) else entry
            sex = _sex_in(str(word)) or _sex_in(str(code))
            if sex:
                meaning[_code(str(code))] = sex
        how = "its Levels"
    elif stated := _CODED_IN_NAME.findall(column):
        meaning = {code: sex for code, word in stated if (sex := _sex_in(word))}
        how = "its name"
    elif field == 31:
        meaning, how = {"0": "F", "1": "M"}, "UK Biobank field 31"
    given = {_code(cell) for cell in cells if not is_missing(cell)}
    understood = {code for code in given if code in meaning or _sex_in(code)}
    if not understood:
        codes, first = ", ".join(sorted(given)[:4]), next(cell for cell in cells if not is_missing(cell))
        raise UserError(
            f"{column} is {first!r}, which could mean anything (values: {codes}). Write F or M, or "
            "state the coding in the JSON file beside the table: "
            f'{{"{column}": {{"Levels": {{"1": "male", "2": "female"}}}}}}.'
        )
    values, bad = [], {}
    for number, cell in enumerate(cells):
        sex = MISSING if is_missing(cell) else meaning.get(_code(cell)) or _sex_in(cell)
        if sex is None:
            bad[number] = f"{column} is {cell!r}, which is neither F nor M"
        values.append(sex or cell)
    numeric = sorted(code for code in understood if code in meaning and not _sex_in(code))
    note = f"{column}: {', '.join(f'{code} is {meaning[code]}' for code in numeric)}, by {how}" if numeric else ""
    return values, bad, note


def _convert_age(
    column: str, cells: Sequence[str], numbers: Sequence[float], described: Mapping[str, Any]
) -> tuple[list[str], dict[int, str], str]:
    known = [number for number in numbers if math.isfinite(number)]
    unit = str(described.get("Units", "")).lower()
    in_months = "month" in unit or re.search(r"_(months|mo)$", plain(column))
    if in_months or (known and statistics.median_low(known) > OLDEST_YEARS):
        why = (
            "is in months"
            if in_months
            else f"has a median of {statistics.median_low(known):g}, as if in months or days"
        )
        raise UserError(f"{column} {why}; age is wanted in years. Divide it (months by 12) and name the column age.")
    if unit and not unit.startswith("y") and unit != "a":
        raise UserError(f"{column} is in {unit}; age is wanted in years. Convert it and name the column age.")
    values, bad = [], {}
    for number, (cell, age) in enumerate(zip(cells, numbers, strict=True)):
        if not is_missing(cell) and not 0 <= age <= OLDEST_YEARS:
            bad[number] = f"{column} is {cell!r}, which is no age in years"
        values.append(MISSING if is_missing(cell) else cell)
    return values, bad, ""


def _convert_volume(
    name: str,
    column: str,
    field: int | None,
    cells: Sequence[str],
    numbers: Sequence[float],
    described: Mapping[str, Any],
) -> tuple[list[str], dict[int, str], str]:
    unit = _unit_of(name, column, field, described)
    factor = _ML_PER_UNIT[unit]
    known = [number * factor for number in numbers if math.isfinite(number) and number > 0]
    low, high = PLAUSIBLE_ML[name]
    middle = statistics.median_low(known) if known else low
    if not low <= middle <= high:
        raise UserError(
            f"{column} has a median of {middle:g} mL if its unit is {unit}; {low:g} to {high:g} mL "
            "is possible. Correct the unit in its name or in the JSON file beside the table."
        )
    values, bad = [], {}
    for number, (cell, volume) in enumerate(zip(cells, numbers, strict=True)):
        if is_missing(cell):
            values.append(MISSING)
        elif not math.isfinite(volume) or volume <= 0:
            bad[number] = f"{column} is {cell!r}, which is no volume"
            values.append(cell)
        else:
            values.append(cell if factor == 1 else f"{volume * factor:.9g}")
    note = f"{column}: {unit} turned into mL" if factor != 1 else ""
    return values, bad, note


def _unit_of(name: str, column: str, field: int | None, described: Mapping[str, Any]) -> str:
    """The unit of a column of volumes, from its description, its name or its UK Biobank field."""
    said = str(described.get("Units", ""))
    stated = _unit(said) if said else None
    if said and stated is None:
        raise UserError(f"{column} is in {said!r}; volumes are wanted in mL or mm^3. Convert it.")
    ending = _UNIT_AT_END.search(plain(column))
    named = ending[1].replace("_", "") if ending else None
    if stated and named and _ML_PER_UNIT[stated] != _ML_PER_UNIT[named]:
        raise UserError(
            f"{column} ends in {named}, but its Units are {said}. Correct the one that is wrong (in the JSON file "
            "beside the table, or the name)."
        )
    unit = stated or named or ("mm3" if field else None)
    if unit is None:
        raise UserError(
            f"{column} is a volume without a unit. Name the column {name} (mL) or {name.removesuffix('_ml')}_mm3, or "
            f'state it in the JSON file beside the table: {{"{column}": {{"Units": "mm^3"}}}}.'
        )
    return unit


def _unit(text: str) -> str | None:
    low = text.strip().lower()
    for word, unit in _UNIT_WORDS.items():
        if low.rstrip("s").startswith(word):
            return unit
    short = re.sub(r"[\s^*]", "", low).replace("³", "3")
    return short if short in _ML_PER_UNIT else None


def _sex_in(text: str) -> str | None:
    return SEX_WORDS.get(text.strip().lower())


def _code(cell: str) -> str:
    """1 and 1.0 are one code."""
    text = cell.strip()
    return text[:-2] if text.endswith(".0") else text
