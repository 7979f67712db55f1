"""Every image of a dataset measured by one backend, resumable and in shards: volumes and, if wanted, label maps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brainldm.datasets.bids import write_excluded
from brainldm.datasets.find import Found, find_scans
from brainldm.datasets.scans import Scan
from brainldm.evaluation.datasets import description, is_stand_in
from brainldm.evaluation.measures.backend import Backend
from brainldm.evaluation.measures.one_image import Context, Record, labels_path, measure_image, state_of
from brainldm.evaluation.measures.tables import write_structures, write_tables
from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.files import parse_line, read_file, write_atomically, write_json
from brainldm.runtime.lock import LOCK, locked, require_own_folder
from brainldm.runtime.shards import WHOLE, Shard, check_shard, shard_suffix
from brainldm.runtime.signals import PreemptionHandler

MARKER = "measure.json"
"""What marks a folder as ours to go on with."""
LOG = "measured{}.jsonl"
"""A line per image, written when it is done; each shard has a file of its own."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did: of `total` images `measured` have volumes, `done_now` of all were worked on in this run.

    `backend` and `weights_sha256` are those of every row; `excluded` images could not be read as scans at all.
    `complete`: no image is left, and the tables are written.
    """

    total: int
    measured: int
    done_now: int
    excluded: int
    complete: bool
    backend: str
    weights_sha256: str | None
    notes: tuple[str, ...] = ()


def default_folder(source: str | Path) -> Path:
    """Where the results go unless said: among the derivatives of a dataset, which is where BIDS has them."""
    source = Path(source)
    return (source if source.is_dir() else source.parent) / "derivatives" / "brainldm-measure"


def measure_dataset(
    source: str | Path,
    out: str | Path,
    backend: Backend,
    *,
    labels: bool = False,
    fill: bool = False,
    pattern: str | None = None,
    shard: Shard = WHOLE,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Measure the images of `source` (see `find_scans`) and write the derivative dataset `out`.

    Writes volumes.tsv and volumes.json, participants.tsv with what the source says of its people, and with `labels` a
    label map for each image and the table of its structures. With `fill`, volumes that participants.tsv lacks
    (ventricles_ml, brain_ml) are filled in. An image that was measured before by the same backend and weights is not
    measured again, unless it changed. `shard` (i, n), from 1, takes each n-th image; whichever run finds the last one
    measured writes the tables. `progress(done, total)` is called after each image.

    Raises UserError for a source without images, an `out` that holds something else or in which another run of the same
    shard is at work, and, with everything written, when not one image could be measured; Stopped after SIGTERM or
    Ctrl-C.
    """
    source, out = Path(source), Path(out)
    check_shard(shard)
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: is the dataset itself. Give another folder for the volumes.")
    found = find_scans(source, pattern=pattern)
    if not found.scans:
        first = f" The first of {len(found.excluded)} left out: {found.excluded[0].reason}." if found.excluded else ""
        raise UserError(f"{source}: no T1w images in it.{first} Give a prepared or generated dataset.")
    require_own_folder(out, MARKER)
    name = shard_suffix(shard)
    with locked(out, LOCK + name, keep=False):
        write_json(out / MARKER, {"Format": 1})
        context = _context(source, out, backend, labels)
        mine = found.scans[shard[0] - 1 :: shard[1]]
        records = _kept(context, mine)
        done_now = len(mine) - len(records)
        if progress is not None:
            progress(len(records), len(mine))
        with contextlib.closing(_measure_rest(context, mine, records, out / LOG.format(name))) as rest:
            for number, _ in enumerate(rest, start=len(records) + 1):
                if progress is not None:
                    progress(number, len(mine))
        return _finish(context, source, found, fill, done_now)


def _measure_rest(context: Context, scans: Sequence[Scan], kept: Mapping[str, Record], log: Path) -> Iterator[Record]:
    """Measure what has no record in `kept`, writing each record to the log before it is given. Raises Stopped."""
    write_atomically(log, b"".join(map(_line, kept.values())))
    todo = [scan for scan in scans if scan.name not in kept]
    with PreemptionHandler() as stop, open(log, "ab") as file:
        for number, scan in enumerate(todo):
            if stop.requested:
                raise Stopped(
                    f"Stopped with {len(todo) - number} images to measure; what is done is saved. The same command "
                    "goes on from here."
                )
            record = measure_image(context, scan)
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
            yield record


def _finish(context: Context, source: Path, found: Found, fill: bool, done_now: int) -> Summary:
    """The tables, when every image has its record."""
    records = _kept(context, found.scans)
    complete = len(records) == len(found.scans)
    if complete:
        rows = [(scan, records[scan.name]) for scan in found.scans]
        write_tables(context.out, source, context.backend, rows, context.labels, fill)
        write_excluded(context.out / "excluded.tsv", found.excluded)
    measured = sum(not record["reason"] for record in records.values())
    if complete and not measured:
        raise UserError(
            f"{source}: none of its {len(records)} images could be measured. The first: "
            f"{records[found.scans[0].name]['reason']}. {context.out / 'volumes.tsv'} gives the reason for each."
        )
    return Summary(
        total=len(found.scans),
        measured=measured,
        done_now=done_now,
        excluded=len(found.excluded),
        complete=complete,
        backend=context.backend.name,
        weights_sha256=context.backend.sha256,
        notes=found.notes,
    )


def label_dataset(
    root: str | Path, backend: Backend, progress: Callable[[int, int], None] | None = None
) -> dict[str, str]:
    """Write a label map beside each image of the BIDS dataset `root`, and the table of the structures.

    Returns the reasons why images have none, by name. `progress(done, total)` is called after each image.
    """
    root = Path(root)
    scans = find_scans(root).scans
    context = _context(root, root, backend, labels=True)
    with locked(root, keep=False):
        reasons = {}
        for number, scan in enumerate(scans, start=1):
            if reason := measure_image(context, scan)["reason"]:
                reasons[scan.name] = reason
            if progress is not None:
                progress(number, len(scans))
        write_structures(root, backend)
    return reasons


def _context(source: Path, out: Path, backend: Backend, labels: bool) -> Context:
    synthetic = description(source).get("Synthetic") is True
    return Context(out, backend, labels, not is_stand_in(source), synthetic)


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _kept(context: Context, scans: Sequence[Scan]) -> dict[str, Record]:
    """The records of images that need not be measured again, by name, in the order of the scans."""
    known: dict[str, list[Record]] = {}
    for log in sorted(context.out.glob(LOG.format("*"))):
        for line in read_file(log).decode(errors="replace").splitlines():
            record = parse_line(line)
            if isinstance(record.get("name"), str):  # not the line that a killed run was writing
                known.setdefault(record["name"], []).append(record)
    usable = ((scan, record) for scan in scans for record in known.get(scan.name, ()) if _holds(context, scan, record))
    return {scan.name: record for scan, record in usable}


def _holds(context: Context, scan: Scan, record: Record) -> bool:
    if any(record.get(name) != value for name, value in state_of(context, scan).items()):
        return False
    if set(record.get("volumes_ml", ())) != set(context.backend.columns):
        return False
    return not context.labels or bool(record.get("reason")) or labels_path(context, scan).is_file()
