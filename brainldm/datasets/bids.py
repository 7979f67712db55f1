"""BIDS datasets: where the images lie and what participants.tsv says of them."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainldm.datasets.columns import STANDARD
from brainldm.datasets.covariates import BRAIN, VENTRICLES, Covariates, is_missing
from brainldm.datasets.scans import (
    Dataset,
    Excluded,
    Scan,
    inside,
    is_participant_id,
    is_session_id,
    is_t1w_name,
    own_table,
    scan_name,
)
from brainldm.datasets.sessions import read_sessions, with_sessions
from brainldm.datasets.tables import Table, read_table
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically, write_json

BIDS_VERSION = "1.10.0"
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def image_path(root: Path, participant_id: str, space: str | None = None, session_id: str | None = None) -> Path:
    """Where the T1w image of a participant, or of a session of one, goes."""
    label = f"_space-{space}" if space else ""
    name = f"{scan_name(participant_id, session_id)}{label}_T1w.nii.gz"
    return Path(root) / participant_id / (session_id or "") / "anat" / name


def read_participants(path: str | Path, wanted: Collection[str] = STANDARD, keep: Collection[str] = ()) -> Table:
    """A participants table as text in standard form (see `tables.read_table`), one row per scan.

    `path` is the table or the root of a dataset, whose tables of sessions are read too. Raises UserError when
    it is absent, unreadable or empty, has no column participant_id, or a column whose unit or coding cannot be known.
    """
    path = root = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such folder or table. Give the root of a BIDS dataset (it holds participants.tsv)."
        )
    if path.is_dir():
        path = own_table(path)
        if not path.exists():
            raise UserError(
                f"{path.parent}: no participants.tsv, so the conditions of the scans are unknown. Add a tab-separated "
                "table with participant_id and one column per condition."
            )
    table = read_table(path, wanted, keep)
    if "participant_id" not in table.columns:
        raise UserError(
            f"{path}: no column participant_id (found: {', '.join(table.columns)}). Is the table separated by tabs?"
        )
    return with_sessions(table, read_sessions(root, table, wanted, keep)) if root.is_dir() else table


def read_dataset(
    root: str | Path, covariates: Covariates, max_excluded: float = 0.0, need_images: bool = True
) -> Dataset:
    """The scans of a BIDS dataset in the order of their names, with their conditions.

    A row of participants.tsv is a scan; with a session_id column, or a sub-X_sessions.tsv, a participant may have
    several. A row with a missing or odd value, a bad id, a second row of one name, or without exactly one image
    inside the dataset cannot be used: such rows are left out and listed when their fraction is at most
    `max_excluded`. Without `need_images` a scan whose image is not there stays, with the path None. Raises
    UserError for a table that cannot be understood, and for a larger fraction of unusable rows.
    """
    root = Path(root)
    table = read_participants(root, covariates.names, (*covariates.names, "participant_id", "session_id", "split"))
    _require_values(table, covariates)
    names = Counter(scan_name(row["participant_id"], _session(row)) for row in table.rows)
    scans, excluded = [], []
    for number, row in enumerate(table.rows):
        participant, session = row["participant_id"], _session(row)
        where = f"{table.path}, {participant}{' ' + session if session else ''}"
        try:
            if not is_participant_id(participant) or (session and not is_session_id(session)):
                raise UserError(
                    f"{table.path}: {participant!r} {session or ''} is not a BIDS id. Use sub- (and ses-) followed by "
                    "letters and digits."
                )
            if names[scan_name(participant, session)] > 1:
                raise UserError(f"{table.path}: {scan_name(participant, session)} appear more than once.")
            conditions = covariates.parse(row, where)
            if number in table.problems:
                raise UserError(f"{where}: {table.problems[number]}. Correct it, or leave this participant out.")
            image = _find_image(root, participant, session, need_images)
            scans.append(Scan(participant, session, image, conditions, split=split_of(row)))
        except UserError as error:
            excluded.append(Excluded(scan_name(participant, session), None, "table", str(error)))
    if len(excluded) > max_excluded * len(table.rows) or not scans:
        reasons = list(dict.fromkeys(entry.reason for entry in excluded))
        raise UserError(_too_many(root, reasons, len(excluded), len(table.rows), max_excluded))
    return Dataset(tuple(sorted(scans, key=lambda scan: scan.name)), tuple(excluded))


def _too_many(root: Path, reasons: Sequence[str], count: int, total: int, allowed: float) -> str:
    if count == 1 or len(reasons) == 1:
        return reasons[0]
    return (
        f"{root}: {count} of {total} scans cannot be used, and a share of {allowed:g} is allowed "
        f"(config.data.max_excluded). The first: {' '.join(reasons[:3])}"
    )


def _require_values(table: Table, covariates: Covariates) -> None:
    """Raise UserError for a condition that no scan has."""
    for name in covariates.names:
        if name in table.columns and all(is_missing(row[name]) for row in table.rows):
            rest = tuple(other for other in covariates.names if other != name)
            raise UserError(
                f"{table.path}: {name} is missing for all {len(table.rows)} scans. "
                f"{'Measure it first' if name in (VENTRICLES.name, BRAIN.name) else 'Fill it in'}, or leave the "
                f"condition out: config.covariates.names={rest!r} (further ones are in config.covariates.extra)."
            )


def _session(row: Mapping[str, str]) -> str | None:
    session = row.get("session_id", "")
    return None if is_missing(session) else session


def split_of(row: Mapping[str, str]) -> str | None:
    """The split that a row states (train, validation, test, or what it says instead), or None."""
    said = row.get("split", "")
    return None if is_missing(said) else _SPLITS.get(said.lower(), said)


def _find_image(root: Path, participant: str, session: str | None, needed: bool) -> Path | None:
    folder = root / participant / (session or "") / "anat"
    stem = scan_name(participant, session)
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_symlink()) for e in entries if e.name.startswith(stem) and is_t1w_name(e.name))
    except (FileNotFoundError, NotADirectoryError):
        found = []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}). Check its permissions.") from error
    found = [item for item in found if item[0][len(stem)] == "_"]
    if not found and not needed:
        return None
    if len(found) != 1:
        what = "no T1w image" if not found else f"{len(found)} T1w images ({', '.join(name for name, _ in found[:3])})"
        raise UserError(f"{folder}: {what} for {stem}. Exactly one {stem}[_space-...]_T1w.nii[.gz] is wanted.")
    path = folder / found[0][0]
    if not inside(root, path if found[0][1] else folder):
        raise UserError(f"{path}: a symbolic link leads out of the dataset. Copy the image into it.")
    return path


def write_excluded(path: str | Path, rows: Sequence[Excluded]) -> None:
    """Write excluded.tsv: participant_id, session_id, source, stage and reason of what was left out, by name."""
    lines = ["participant_id\tsession_id\tsource\tstage\treason"]
    for entry in sorted(rows, key=lambda entry: (entry.name, str(entry.path or ""), entry.stage)):
        participant, _, session = entry.name.partition("_ses-")
        cells = (participant, f"ses-{session}" if session else "n/a", entry.path or "n/a", entry.stage, entry.reason)
        lines.append("\t".join(" ".join(str(cell).split()) or "n/a" for cell in cells))
    text = "\n".join(lines) + "\n"
    # a file name that is no UTF-8 must not stop the list of what is wrong
    write_atomically(path, text.encode(errors="backslashreplace"))


def write_dataset_files(
    root: str | Path,
    *,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, Mapping[str, Any]],
    generated_by: Mapping[str, Any],
    readme: str,
    extra: Mapping[str, Any] | None = None,
    sidecar: Mapping[str, Any] | None = None,
) -> None:
    """Write dataset_description.json, participants.tsv, participants.json and README of a derivative dataset.

    `rows` hold participant_id and the values; `columns` describes every other column (Description, Units,
    Levels) in the order wanted; `extra` goes into dataset_description.json, and `sidecar`, what holds for every image,
    into T1w.json.
    """
    root = Path(root)
    description = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [dict(generated_by)],
        **(extra or {}),
    }
    write_json(root / "dataset_description.json", description)
    write_json(root / "participants.json", columns)
    if sidecar is not None:
        write_json(root / "T1w.json", sidecar)
    write_atomically(root / "README", readme.encode())
    write_atomically(root / "participants.tsv", table_bytes(["participant_id", *columns], rows))


def table_bytes(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table with the columns `names` as BIDS writes it, separated by tabs."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(names)
    table.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """`value` as BIDS writes it: n/a where there is none."""
    return "n/a" if value is None or (isinstance(value, float) and math.isnan(value)) else value
