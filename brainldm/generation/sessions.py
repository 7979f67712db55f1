"""The tables of a generated dataset in which a person has several sessions: who they are, and what each session has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brainldm.datasets.bids import table_bytes
from brainldm.generation.archive import write_archive
from brainldm.generation.job import Job
from brainldm.generation.manifest import Entry
from brainldm.runtime.files import file_sha256, write_atomically, write_json

SESSIONS_JSON, SESSIONS_TAR = "sessions.json", "sessions.tar"
_WRITERS = 4


def split_columns(job: Job, columns: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptions of columns, apart: those of a person (levels do not change), and those of a session (numbers,
    and what is said of one brain). All are a person's in a dataset without sessions."""
    if not job.sessions:
        return columns, {}
    person = {name: said for name, said in columns.items() if "Levels" in said and name in job.about["columns"]}
    return person, {name: said for name, said in columns.items() if name not in person}


def table_row(job: Job, entry: Entry) -> dict[str, Any]:
    """What the tables say of a brain, by column."""
    return {
        "participant_id": job.subject_id(entry["index"]),
        **entry["conditions"],
        "extrapolated": str(entry["extrapolated"]).lower(),
    }


def write_session_tables(out: Path, job: Job, entries: Sequence[Entry], columns: dict[str, Any]) -> dict[str, str]:
    """Write sessions.json, and sub-X_sessions.tsv for each person, of `entries` in the order of their indices; the
    SHA-256 of each by its path. Where brains lie in tars, so do the tables, in sessions.tar. A table that is there as
    it should be is left alone."""
    if not job.sessions:
        return {}
    write_json(out / SESSIONS_JSON, columns)
    names = ["session_id", *columns]

    def table(person: int) -> tuple[str, bytes]:
        mine = slice(person * job.repeat, (person + 1) * job.repeat)
        subject = job.subject_id(person * job.repeat)
        rows = ({**table_row(job, entry), "session_id": job.session_id(entry["index"])} for entry in entries[mine])
        return f"{subject}/{subject}_sessions.tsv", table_bytes(names, rows)

    def write(person: int) -> tuple[str, str]:
        path, content = table(person)
        sha256 = hashlib.sha256(content).hexdigest()
        if file_sha256(out / path) != sha256:
            write_atomically(out / path, content)
        return path, sha256

    if job.archive:
        sums = {SESSIONS_TAR: write_archive(out / SESSIONS_TAR, map(table, range(job.people)))}
    else:
        with ThreadPoolExecutor(_WRITERS) as pool:
            sums = dict(pool.map(write, range(job.people)))
    return sums | {SESSIONS_JSON: file_sha256(out / SESSIONS_JSON)}
