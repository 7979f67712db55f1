"""Where scans come from: a BIDS dataset, a folder of images, a list, or a table with a column of images.

Folders are walked by `os.scandir` and no file is looked into, so that 40,000 people are found in seconds. What cannot
be used is listed with its reason, never dropped in silence.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from brainldm.datasets.columns import MISSING, STANDARD, plain
from brainldm.datasets.covariates import is_missing
from brainldm.datasets.folders import STAGE, find_bids, find_in_folder, is_bids, matches, name_files
from brainldm.datasets.joining import join_values
from brainldm.datasets.scans import Excluded, Scan, ScanError, clean_id, ids_of_file, own_table, scan_name
from brainldm.datasets.sessions import read_sessions
from brainldm.datasets.tables import Table, read_table
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_file
from brainldm.volumes.headers import is_image_name

_IMAGE_COLUMNS = "image image_path path file filename file_path filepath t1w t1 t1_path nifti scan"
_MASK_COLUMNS = "mask mask_path brain_mask brainmask"


@dataclasses.dataclass(frozen=True)
class Found:
    """Scans in the order of their names, what was left out, and how tables were understood."""

    scans: list[Scan]
    excluded: list[Excluded]
    notes: tuple[str, ...] = ()


def find_scans(source: str | Path, *, table: str | Path | None = None, pattern: str | None = None) -> Found:
    """The scans of `source` and what is said of them.

    `source` is a BIDS dataset (sub-*/[ses-*/]anat/*_T1w.nii[.gz]), any other folder (every NIfTI or MGH file below it),
    one image, a list (.txt: one path per line, # comments, relative to the list), or a table (.csv, .tsv) with a column
    image, path or file and, if wanted, participant_id, session_id and mask. `table` adds columns by participant (and
    session). `pattern` keeps the files whose name, or path below the source, matches it ("*_T1w.nii.gz",
    "*/mri/orig.mgz").

    In a plain folder the id of a scan is its file name without other characters than letters and digits (the name of
    the person's folder for FreeSurfer's mri/*.mgz). One name is one scan: files that share a name, a session with
    several T1w images, links and ids that lead out of the folder, and files that are not there are left out.
    Raises UserError when there is no such source, or a table cannot be understood.
    """
    source = Path(source)
    tables: list[Table] = []
    if not source.exists():
        raise UserError(f"{source}: no such folder or file. Give a BIDS dataset, a folder of scans, a list or a table.")
    own = own_table(source)
    if source.is_dir():
        scans, excluded = (find_bids if is_bids(source) else find_in_folder)(source, pattern)
        if own.exists():
            tables.append(read_table(own, keep=("split",)))
            if (sessions := read_sessions(source, tables[0])) is not None:
                tables.append(sessions)
    elif is_image_name(source.name):
        scans, excluded = name_files([(source, source.name)], ())
    elif source.suffix.lower() == ".txt":
        scans, excluded = _read_list(source, pattern)
    else:
        scans, excluded, listed = _find_in_table(source, pattern)
        tables.append(listed)
    if table is not None:
        tables.append(read_table(Path(table)))
    named_twice = {name for name, count in Counter(scan.name for scan in scans).items() if count > 1}
    excluded += [
        Excluded(scan.name, scan.path, STAGE, f"several images would be {scan.name}; choose among them by a pattern")
        for scan in scans
        if scan.name in named_twice
    ]
    scans = [scan for scan in scans if scan.name not in named_twice]
    notes: list[str] = []
    for one in tables:
        notes += one.notes
        if one.path == source:  # its rows are the scans
            continue
        joined = join_values([(s.participant_id, s.session_id) for s in scans], one)
        notes += joined.notes
        if one.path == own:
            excluded += _without_image(one, joined.used, excluded)
        for scan, reason in zip(scans, joined.reasons, strict=True):
            if reason:
                excluded.append(Excluded(scan.name, scan.path, "table", f"{one.path}: {reason}"))
        scans = [
            dataclasses.replace(scan, covariates={**scan.covariates, **_given(scan.covariates, value)})
            for scan, value, reason in zip(scans, joined.values, joined.reasons, strict=True)
            if not reason
        ]
    scans = [dataclasses.replace(s, covariates={**dict.fromkeys(STANDARD, MISSING), **s.covariates}) for s in scans]
    return Found(
        sorted(scans, key=lambda scan: scan.name),
        sorted(excluded, key=lambda entry: (entry.name, str(entry.path or ""))),
        tuple(notes),
    )


def _given(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What a later table adds: its values, but nothing missing over something known."""
    return {name: value for name, value in after.items() if value != MISSING or name not in before}


def _without_image(table: Table, used: Set[int], excluded: Sequence[Excluded]) -> list[Excluded]:
    """The rows of participants.tsv that are no scan's, but for people who are left out already."""
    known = {entry.name.partition("_ses-")[0] for entry in excluded}
    rows = [row for number, row in enumerate(table.rows) if number not in used]
    names = [(row[table.id_column], row.get(table.session_column or "", MISSING)) for row in rows]
    return [
        Excluded(
            scan_name(who, None if is_missing(visit) else visit), None, STAGE, f"{table.path}: it has no T1w image"
        )
        for who, visit in names
        if who not in known
    ]


def _read_list(path: Path, pattern: str | None) -> tuple[list[Scan], list[Excluded]]:
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as a list of paths in UTF-8 ({error}).") from error
    files, excluded, seen = [], [], set()
    for line in (line.strip() for line in lines):
        file = path.parent / os.path.expanduser(line)
        if not line or line.startswith("#") or not matches(path.parent, str(file), pattern):
            continue
        try:
            _require_listed(file, seen)
            files.append((file, line))
        except ScanError as reason:
            excluded.append(Excluded(line, file, STAGE, str(reason)))
    return name_files(files, excluded)


def _require_listed(file: Path, seen: set[str]) -> None:
    """Raise ScanError for a listed path that is no image, not there, or listed before."""
    if not is_image_name(file.name):
        raise ScanError("not named as a NIfTI or MGH file (.nii, .nii.gz, .mgh, .mgz)")
    whole = os.path.normpath(file)
    if "\0" in whole or not os.path.lexists(whole):
        raise ScanError("no such file")
    if whole in seen:
        raise ScanError("listed twice")
    seen.add(whole)


def _find_in_table(path: Path, pattern: str | None) -> tuple[list[Scan], list[Excluded], Table]:
    table = read_table(path, keep=(*_IMAGE_COLUMNS.split(), *_MASK_COLUMNS.split()))
    by_name = {plain(column): column for column in reversed(table.columns)}
    image = next((by_name[name] for name in _IMAGE_COLUMNS.split() if name in by_name), None)
    mask = next((by_name[name] for name in _MASK_COLUMNS.split() if name in by_name), None)
    if image is None:
        raise UserError(
            f"{path}: no column of images (image, path, file, T1w; found: {', '.join(table.columns[:8])}). Name the "
            "column image; or give the folder of the scans, and this table by --table."
        )
    scans: list[Scan] = []
    excluded: list[Excluded] = []
    seen: set[str] = set()
    own = (image, mask, table.id_column, table.session_column)
    for number, row in enumerate(table.rows):
        cell, who, visit = row[image], row.get(table.id_column or "", ""), row.get(table.session_column or "", "")
        file = None
        try:
            if is_missing(cell):
                raise ScanError(f"{path}: no image in the column {image}")
            file = path.parent / os.path.expanduser(cell)
            if not matches(path.parent, str(file), pattern):
                continue
            _require_listed(file, seen)
            person, session = ids_of_file(file) if is_missing(who) else (clean_id(who, "sub-"), None)
            session = session if is_missing(visit) else clean_id(visit, "ses-")
            if number in table.problems:
                raise ScanError(f"{path}: {table.problems[number]}")
            mask_path = path.parent / row[mask] if mask and not is_missing(row[mask]) else None
            if mask_path and not os.path.lexists(mask_path):
                raise ScanError(f"no such mask: {mask_path}")
        except ScanError as reason:
            excluded.append(Excluded(cell if is_missing(who) else who, file, STAGE, str(reason)))
            continue
        values = {column: value for column, value in row.items() if column not in own}
        scans.append(Scan(person, session, file, values, mask_path))
    return scans, excluded, table
