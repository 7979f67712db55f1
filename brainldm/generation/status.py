"""How far a generated dataset is, and whether its files are those that were written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from brainldm.generation.archive import strange_archives
from brainldm.generation.job import read_job
from brainldm.generation.manifest import Entry, find_problems, read_manifests, shard_is_done
from brainldm.runtime.files import SUMS

_RECENT = 1000
"""Brains whose times tell the rate."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Brains: in `total`, `done`, `bad` (recorded, but the file is gone or of another length) and `missing` (not
    recorded). Shards, and how many are done. `finished`: the tables are written too. `rate` is in brains per second,
    by the times of the last files, over all shards; None when unknown, as for brains in tars, like `seconds_left`.
    """

    total: int
    done: int
    bad: int
    missing: int
    shards: int
    shards_done: int
    finished: bool
    rate: float | None
    seconds_left: float | None


def read_status(out: str | os.PathLike) -> Status:
    """Look at a folder of `generate`, without reading an image. Raises UserError when it is none."""
    out = Path(out)
    job = read_job(out)
    entries = {entry["index"]: entry for entry in read_manifests(out)}
    bad = find_problems(out, list(entries.values()), full=False)
    good = [entry for entry in entries.values() if entry["id"] not in bad]
    rate = None if job.archive else _rate(out, good)
    return Status(
        total=job.count,
        done=len(good),
        bad=len(bad),
        missing=job.count - len(entries),
        shards=job.shards,
        shards_done=sum(shard_is_done(out, (i, job.shards)) for i in range(1, job.shards + 1)),
        finished=(out / SUMS).exists() and len(good) == job.count,
        rate=rate,
        seconds_left=(job.count - len(good)) / rate if rate else None,
    )


def verify(out: str | os.PathLike, full: bool = False) -> tuple[int, dict[str, str]]:
    """How many brains are recorded, and what is wrong with which: files gone or of another length, with `full` also
    those of another SHA-256, and images and tars that no manifest has. Raises UserError for a folder that
    `generate` did not make."""
    out = Path(out)
    job = read_job(out)
    entries = list(read_manifests(out))
    known = {entry["file"] for entry in entries}
    strange = {
        path.relative_to(out).as_posix(): "in no manifest"
        for path in out.glob("sub-*/ses-*/anat/*.nii.gz" if job.sessions else "sub-*/anat/*.nii.gz")
        if path.name.endswith("_T1w.nii.gz") and path.relative_to(out).as_posix() not in known
    }
    if job.archive:
        strange |= strange_archives(out, entries, closed=(out / SUMS).exists())
    return len(entries), find_problems(out, entries, full) | strange


def _rate(out: Path, entries: Sequence[Entry]) -> float | None:
    times = sorted(os.stat(out / entry["file"]).st_mtime for entry in entries)[-_RECENT:]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
