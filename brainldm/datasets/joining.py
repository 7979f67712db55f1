"""Which row of a table is whose scan, where ids are not written alike."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from brainldm.datasets.columns import plain
from brainldm.datasets.covariates import is_missing
from brainldm.datasets.tables import Table
from brainldm.runtime.errors import UserError

_GENERAL = ("participant", "subject", "sub", "patient", "person", "scan", "image", "session", "e", "n_e", "mr", "pt")


@dataclasses.dataclass(frozen=True)
class Joined:
    """For each scan its `values` (none without a row) and a reason to leave it out ("" mostly); `notes`; and the
    numbers of the rows that are some scan's."""

    values: list[dict[str, str]]
    reasons: list[str]
    notes: list[str]
    used: set[int]


def join_values(scans: Sequence[tuple[str, str | None]], table: Table) -> Joined:
    """The rows of `table` for `scans` (participant, session).

    Ids are compared without sub-, case and punctuation; where that finds nothing, without leading zeros, and where
    that finds nothing, an id may be the beginning of a scan's (the table's IXI012-HH of IXI012-HH-1211-T1), each only
    if one person and one row are meant. A scan without a row has no values. Two different rows for one scan are a
    reason to leave it out. A row without an id, or whose id has no letter or digit, is no scan's. Raises UserError
    when the table has no column of ids.
    """
    if table.id_column is None:
        raise UserError(
            f"{table.path}: no column says whose the rows are (found: {', '.join(table.columns[:8])}). Name it "
            "participant_id."
        )
    rows: dict[str, list[int]] = {}
    nameless = []
    for number, row in enumerate(table.rows):
        key = "" if is_missing(row[table.id_column]) else _key(row[table.id_column])
        if key:
            rows.setdefault(key, []).append(number)
        else:
            nameless.append(row[table.id_column])
    people = _match(sorted({person for person, _ in scans}), list(rows), table.id_column)
    values, reasons = [], []
    used: set[int] = set()
    for person, session in scans:
        mine = rows[people[person]] if person in people else []
        mine = [n for n in mine if _is_session(table, n, session)]
        used.update(mine)
        found = [
            {k: v for k, v in table.rows[n].items() if k not in (table.id_column, table.session_column)} for n in mine
        ]
        reason = ""
        if any(other != found[0] for other in found[1:]):
            reason = f"{len(found)} rows are of {person}, and nothing tells which is of this scan"
        elif mine and mine[0] in table.problems:
            reason = table.problems[mine[0]]
        values.append(found[0] if found else {})
        reasons.append(reason)
    notes = []
    without = sum(not value for value in values)
    if without:
        notes.append(f"{table.path}: no row for {without} of {len(scans)} scans; their values are missing")
    if nameless:
        notes.append(
            f"{table.path}: {len(nameless)} of {len(table.rows)} rows have no id with a letter or digit (first: "
            f"{nameless[0]!r}); they are no scan's"
        )
    unused = len(table.rows) - len(nameless) - len(used)
    if unused:
        notes.append(f"{table.path}: no scan for {unused} of {len(table.rows)} rows")
    loose = sum(_key(person) != key for person, key in people.items())
    if loose:
        notes.append(f"{table.path}: the ids of {loose} people are written otherwise than their scans'")
    return Joined(values, reasons, notes, used)


def _match(people: Sequence[str], keys: Sequence[str], column: str) -> dict[str, str]:
    """For each person the key of a table that means them, if exactly one does."""
    known = set(keys)
    times = Counter(map(_key, people))
    found = {person: _key(person) for person in people if _key(person) in known and times[_key(person)] == 1}
    prefix = _cohort(column)
    for forms in (_without_zeros, lambda key: _without_zeros(prefix + key if key.isdigit() else key)):
        by_form: dict[str, set[str]] = {}
        taken = set(found.values())
        for key in known - taken:
            by_form.setdefault(forms(key), set()).add(key)
        wanted: dict[str, list[str]] = {}
        for person in people:
            if person not in found:
                wanted.setdefault(_without_zeros(_key(person)), []).append(person)
        for form, persons in wanted.items():
            meant = by_form.get(form, set())
            if len(meant) == 1 and len(persons) == 1:
                found[persons[0]] = next(iter(meant))
    return _match_beginnings(people, known, found, prefix)


def _match_beginnings(people: Sequence[str], known: set[str], found: dict[str, str], prefix: str) -> dict[str, str]:
    """Add people whose id begins with the id of one row, where no other person's does."""
    taken = set(found.values())
    by_form: dict[str, set[str]] = {}
    for key in known - taken:
        by_form.setdefault(_without_zeros(prefix + key if key.isdigit() else key), set()).add(key)
    claims: dict[str, list[str]] = {}
    for person in people:
        if person in found:
            continue
        whole = _without_zeros(_key(person))
        # a number is not the beginning of a longer number, nor a word of a longer word
        ends = [m.end() for m in re.finditer(r"\d(?!\d)|[a-z](?![a-z])", whole)][:-1]
        for end in reversed(ends):
            meant = by_form.get(whole[:end], set())
            if re.search(r"\d", whole[:end]) and len(meant) == 1:
                claims.setdefault(next(iter(meant)), []).append(person)
                break
    return {**found, **{persons[0]: key for key, persons in claims.items() if len(persons) == 1}}


def _is_session(table: Table, number: int, session: str | None) -> bool:
    if session is None or table.session_column is None:
        return True
    said = table.rows[number][table.session_column]
    return is_missing(said) or _bare(said, "ses") == _bare(session, "ses")


def _bare(text: str, prefix: str) -> str:
    return _without_zeros(re.sub(r"[\W_]", "", text.lower()).removeprefix(prefix))


def _key(text: str) -> str:
    """An id without sub-, case and punctuation, its letters and digits of any script.

    UK Biobank ids that a spreadsheet made 1000012.0 are whole again. "" for an id of punctuation alone.
    """
    low = re.sub(r"\.0$", "", unicodedata.normalize("NFC", text).strip().lower().removeprefix("sub-"))
    return re.sub(r"[\W_]", "", low)


def _without_zeros(key: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", key)


def _cohort(column: str) -> str:
    """The name of a study in the name of an id column: ixi for IXI_ID, nothing for subject_id."""
    name = re.fullmatch(r"([a-z_]+?)_?id", plain(column))
    return "" if name is None or name[1] in _GENERAL else name[1]
