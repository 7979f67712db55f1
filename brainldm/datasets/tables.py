"""Tables of people: any separator, any of the usual column names, and one form of what they say.

`read_table` gives rows of text in which the four standard conditions have their names and units (sex F or M, age in
years, volumes in mL). What cannot be known, such as a coding or a unit, is refused, never guessed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainldm.datasets.columns import STANDARD, convert, plain, recognise
from brainldm.datasets.covariates import is_missing
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import parse_json, read_file

MAX_COLUMNS = 200
"""Tables with more columns keep only those that are understood: a whole UK Biobank export has thousands."""

_IDS = "participant_id participant subject_id subjectid subject sub_id sub eid f_eid n_eid ixi_id mrid ptid id name"
_SESSIONS = "session_id session ses"
_NUMBER_WITH_COMMA = re.compile(r"-?\d+,\d+")

Cells = tuple[list[str], list[list[str]]]
"""A header and rows of as many cells."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table as rows of text. `problems` says by row number (from 0) what of a row cannot be understood; `notes` say
    how columns were understood; `id_column` and `session_column` are its columns of that kind, if any."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    problems: dict[int, str]
    notes: tuple[str, ...]
    id_column: str | None
    session_column: str | None

    def cells(self, column: str) -> list[str]:
        """The cells of a column, row by row."""
        return [row[column] for row in self.rows]


def read_table(path: str | Path, wanted: Collection[str] = STANDARD, keep: Collection[str] = ()) -> Table:
    """A table (.csv, .tsv, .txt: separated by tabs, commas or semicolons; UTF-8 or UTF-16) in standard form.

    The columns of `wanted` conditions get their standard names and units; a missing value is "n/a". Of other columns
    all are kept as they are, or, beyond 200 columns, those in `keep` (compared without case). Units and codings come
    from the JSON file of the same name beside the table (or participants.json), from column names, or from UK Biobank
    field numbers. Raises UserError for a file that cannot be read as a table, and for a column whose coding or unit
    cannot be known.
    """
    path = Path(path)
    return table_of(path, read_cells(path), read_descriptions(path), wanted, keep)


def table_of(
    path: Path,
    content: Cells,
    described: Mapping[str, Mapping[str, Any]],
    wanted: Collection[str] = STANDARD,
    keep: Collection[str] = (),
) -> Table:
    """What `read_table` makes of the cells of a table and the descriptions of its columns."""
    columns, cells = content
    sources, notes = _choose_columns(columns, wanted, path)
    ids, session = _first_of(_IDS, columns), _first_of(_SESSIONS, columns)
    taken = {index for index, _ in sources.values()}
    others = [index for index in range(len(columns)) if index not in taken]
    if len(columns) > MAX_COLUMNS:
        low = {name.lower() for name in keep}
        kept = [i for i in others if columns[i] in (ids, session) or columns[i].lower() in low]
        notes.append(f"{path}: {len(columns)} columns; {len(others) - len(kept)} that mean nothing here are left out")
        others = kept
    rows = [{columns[i]: _other_cell(line[i]) for i in others} for line in cells]
    problems: dict[int, str] = {}
    for name, (index, field) in sources.items():
        given = [_with_point(line[index].strip()) for line in cells]
        try:
            values, bad, note = convert(name, columns[index], field, given, described.get(columns[index], {}))
        except UserError as error:
            number = next(k for k, cell in enumerate(given) if not is_missing(cell))
            whose = f", {cells[number][columns.index(ids)]}" if ids and name == "sex" else ""
            raise UserError(f"{path}{whose}: {error}") from error
        notes += [note] if note else []
        for row, value in zip(rows, values, strict=True):
            row[name] = value
        for number, what in bad.items():
            problems[number] = f"{problems[number]}; {what}" if number in problems else what
    names = tuple(columns[i] for i in others) + tuple(sources)
    return Table(path, names, rows, problems, tuple(notes), ids, session)


def read_cells(path: Path) -> Cells:
    """The header and the rows of a table, as text, all of one length. Raises UserError for a file that is no table."""
    content = read_file(path)
    if content[:4] == b"PK\x03\x04" or path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{path}: a spreadsheet program's own file. Save it as CSV (UTF-8) and give that.")
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error}). Save it as CSV (UTF-8).") from error
    if "\0" in text:
        raise UserError(f"{path}: holds NUL characters, so it is no table. Save it as CSV (UTF-8).")
    first = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    separator = "\t" if "\t" in first else max(",;", key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a table ({error}). Save it as CSV (UTF-8).") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if len(numbered) < 2:
        raise UserError(f"{path}: no participants in it. A table has a line of column names and one line per scan.")
    columns = [cell.strip() for cell in numbered[0][1]]
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: {len(repeated)} column names appear twice ({', '.join(repeated[:3])}). Rename one.")
    for number, line in numbered[1:]:
        if len(line) != len(columns):
            raise UserError(
                f"{path}, line {number}: {len(line)} fields, but {len(columns)} column names in the first line. A cell "
                "that holds the separator needs quotation marks."
            )
    return columns, [line for _, line in numbered[1:]]


def read_descriptions(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """What the JSON file beside a table says of its columns."""
    for beside in (path.with_suffix(".json"), path.with_name("participants.json")):
        if not os.path.lexists(beside):
            continue
        try:
            content = parse_json(read_file(beside), beside)
        except UserError as error:
            raise UserError(
                f"{error} Correct it or its permissions, or remove it: it holds the units of {path.name}."
            ) from error
        if isinstance(content, dict):
            return {name: entry for name, entry in content.items() if isinstance(entry, dict)}
    return {}


def _choose_columns(
    columns: Sequence[str], wanted: Collection[str], path: Path
) -> tuple[dict[str, tuple[int, int | None]], list[str]]:
    """For each wanted condition the column to take, {name: (index, UK Biobank field)}, and notes on choices."""
    found: dict[str, list[tuple[int, int | None, int | None]]] = {}
    for index, column in enumerate(columns):
        known = recognise(column)
        if known and known.name in wanted:
            found.setdefault(known.name, []).append((index, known.field, known.instance))
    chosen: dict[str, tuple[int, int | None]] = {}
    notes = []
    for name, candidates in found.items():
        exact = [c for c in candidates if columns[c[0]] == name]
        plainly = [c for c in candidates if c[1] is None]
        if exact or len(plainly) == 1:
            pick = (exact or plainly)[0]
        elif plainly:
            both = ", ".join(columns[c[0]] for c in plainly)
            raise UserError(f"{path}: {both} could each be {name}. Name the right one {name}.")
        else:  # UK Biobank: 2 is the imaging visit
            pick = min(candidates, key=lambda c: (c[2] not in (None, 2), c[2] or 0))
        chosen[name] = pick[:2]
        if columns[pick[0]] != name:
            rest = [columns[c[0]] for c in candidates if c is not pick]
            instead = f" (not {', '.join(rest)})" if rest else ""
            notes.append(f"{path}: {name} is column {columns[pick[0]]}{instead}")
    return chosen, notes


def _first_of(names: str, columns: Sequence[str]) -> str | None:
    """The first of the possible `names` that is a column."""
    by_name = {plain(column): column for column in reversed(columns)}
    return next((by_name[name] for name in names.split() if name in by_name), None)


def _other_cell(cell: str) -> str:
    return "n/a" if is_missing(cell) else cell.strip()


def _with_point(cell: str) -> str:
    """63,5 as it is written in much of Europe, as 63.5. A cell with one comma that is all number is no list."""
    return cell.replace(",", ".") if _NUMBER_WITH_COMMA.fullmatch(cell) else cell
