"""What BIDS says of a person's visits, sub-X/sub-X_sessions.tsv, as one table; and joined to that of the people."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from brainldm.datasets.columns import STANDARD
from brainldm.datasets.scans import inside, is_participant_id
from brainldm.datasets.tables import Cells, Table, read_cells, read_descriptions, table_of
from brainldm.runtime.errors import UserError

_PERSON, _SESSION = "participant_id", "session_id"


def read_sessions(
    root: str | Path, people: Table, wanted: Collection[str] = STANDARD, keep: Collection[str] = ()
) -> Table | None:
    """The sessions of the people of a participants table, with participant_id and session_id: those of the tables
    sub-X_sessions.tsv of the dataset `root`, in standard form (see `tables.read_table`). None where there are none.

    Raises UserError for a table of sessions that cannot be read, leads out of the dataset or has no session_id.
    """
    root, found = Path(root), {}
    for row in people.rows if people.id_column else ():
        who = row[people.id_column]
        path = root / who / f"{who}_sessions.tsv"
        if who in found or not is_participant_id(who) or not path.exists():
            continue
        if not inside(root, path):
            raise UserError(f"{path}: a symbolic link leads out of the dataset. Copy the table into it.")
        found[who] = read_cells(path)
        if _SESSION not in found[who][0]:
            raise UserError(f"{path}: no column {_SESSION}, so it is not known which session a row is of. Add it.")
    path = root / "sessions.tsv"  # where the descriptions of all of them lie, as sessions.json
    keep = (*keep, _PERSON)
    return table_of(path, _joined(found), read_descriptions(path), wanted, keep) if found else None


def _joined(found: dict[str, Cells]) -> Cells:
    """The cells of tables, by whose they are, as those of one: with all columns that any of them has."""
    columns = dict.fromkeys(column for names, _ in found.values() for column in names if column != _PERSON)
    lines = []
    for who, (names, visits) in found.items():
        for visit in visits:
            cells = dict(zip(names, visit, strict=True))
            lines.append([who, *(cells.get(column, "n/a") for column in columns)])
    return [_PERSON, *columns], lines


def with_sessions(people: Table, sessions: Table | None) -> Table:
    """`people` with a row for each of their `sessions`: what that says, and of the person what it does not.

    A person without any keeps the one row, and a table that has sessions itself comes back as it is.
    """
    if sessions is None or people.session_column is not None:
        return people
    visits: dict[str, list[int]] = {}
    for number, row in enumerate(sessions.rows):
        visits.setdefault(row[_PERSON], []).append(number)
    columns = tuple(dict.fromkeys((*people.columns, *sessions.columns)))
    rows, problems = [], {}
    for number, person in enumerate(people.rows):
        for visit in visits.get(person[people.id_column], [None]):
            said = {} if visit is None else {k: v for k, v in sessions.rows[visit].items() if v != "n/a"}
            wrong = [people.problems.get(number), sessions.problems.get(visit)]
            if any(wrong):
                problems[len(rows)] = "; ".join(filter(None, wrong))
            rows.append(dict.fromkeys(columns, "n/a") | person | said)
    notes = people.notes + sessions.notes
    return dataclasses.replace(
        people, columns=columns, rows=rows, problems=problems, notes=notes, session_column=_SESSION
    )
