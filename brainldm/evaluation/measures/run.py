"""Every image of a dataset measured by one backend, resumable: a table of volumes and, if wanted, label maps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import brainldm
from brainldm.data.pipeline import scale_intensities
from brainldm.datasets.bids import write_excluded
from brainldm.datasets.find import find_scans
from brainldm.datasets.scans import Scan
from brainldm.evaluation.datasets import description, is_stand_in
from brainldm.evaluation.measures.backend import Backend, Image, Measured
from brainldm.evaluation.measures.head_size import is_whole_head, registration_scale
from brainldm.evaluation.measures.tables import write_tables
from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.files import require_new_folder, write_atomically
from brainldm.runtime.lock import LOCK, locked
from brainldm.runtime.signals import PreemptionHandler
from brainldm.volumes.grids import Grid
from brainldm.volumes.nifti import INT16_MAX, read_volume, write_volume

LOG = "measured.jsonl"
"""A line per image, written when it is done; it marks a folder as ours to go on with."""

_SPACE = re.compile(r"_space-[0-9A-Za-z]+")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did: of `total` images `measured` have volumes, `done_now` of all were worked on in this run.

    `backend` and `weights_sha256` are those of every row; `excluded` images could not be read as scans at all.
    """

    total: int
    measured: int
    done_now: int
    excluded: int
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
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Measure the images of `source` (see `find_scans`) and write the derivative dataset `out`.

    Writes volumes.tsv and volumes.json, participants.tsv with what the source says of its people, and with `labels` a
    label map for each image and the table of its structures. With `fill`, volumes that participants.tsv lacks
    (ventricles_ml, brain_ml) are filled in. An image that was measured before by the same backend and weights is not
    measured again, unless it changed. `progress(done, total)` is called after each image.

    Raises UserError for a source without images, an `out` that holds something else or in which another run is at work,
    and, with everything written, when not one image could be measured; Stopped after SIGTERM or Ctrl-C.
    """
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: is the dataset itself. Give another folder for the volumes.")
    found = find_scans(source, pattern=pattern)
    if not found.scans:
        first = f" The first of {len(found.excluded)} left out: {found.excluded[0].reason}." if found.excluded else ""
        raise UserError(f"{source}: no T1w images in it.{first} Give a prepared or generated dataset.")
    if not (out.is_dir() and all(path.name.startswith(LOCK) for path in out.iterdir())):
        require_new_folder(out, LOG)
    with locked(out, keep=False):
        context = _Context(out, backend, labels, not is_stand_in(source), description(source).get("Synthetic") is True)
        records = _kept(context, found.scans)
        write_atomically(out / LOG, b"".join(_line(record) for record in records.values()))
        todo = [scan for scan in found.scans if scan.name not in records]
        if progress is not None:
            progress(len(records), len(found.scans))
        with PreemptionHandler() as stop, open(out / LOG, "ab") as log:
            for scan in todo:
                if stop.requested:
                    raise Stopped(
                        f"Stopped with {len(found.scans) - len(records)} images to measure; what is done is saved. The "
                        "same command goes on from here."
                    )
                records[scan.name] = _measure(context, scan)
                log.write(_line(records[scan.name]))
                log.flush()
                os.fsync(log.fileno())
                if progress is not None:
                    progress(len(records), len(found.scans))
        ordered = [(scan, records[scan.name]) for scan in found.scans]
        write_tables(out, source, backend, ordered, labels, fill)
        write_excluded(out / "excluded.tsv", found.excluded)
    measured = sum(not record["reason"] for _, record in ordered)
    if not measured:
        raise UserError(
            f"{source}: none of its {len(ordered)} images could be measured. The first: {ordered[0][1]['reason']}. "
            f"{out / 'volumes.tsv'} gives the reason for each."
        )
    total, sha256 = len(ordered), backend.sha256
    return Summary(total, measured, len(todo), len(found.excluded), backend.name, sha256, found.notes)


@dataclasses.dataclass(frozen=True)
class _Context:
    out: Path
    backend: Backend
    labels: bool
    people: bool
    synthetic: bool


def _measure(context: _Context, scan: Scan) -> Record:
    """The record of one image, with its label map written."""
    found, labels = _found(context, scan), None
    if found.labels is not None and not found.reason:
        labels = _labels_path(context, scan)
        volume = read_volume(scan.path)
        write_volume(labels, found.labels, volume.affine, f"brainldm {context.backend.name}", scale_max=INT16_MAX)
    volumes = {name: round(value, 6) if math.isfinite(value) else None for name, value in found.volumes_ml.items()}
    return {
        "name": scan.name,
        **_state(context, scan),
        "volumes_ml": volumes,
        "reason": found.reason,
        "labels": labels.relative_to(context.out).as_posix() if labels else None,
    }


def _found(context: _Context, scan: Scan) -> Measured:
    backend = context.backend
    if backend.needs_stripped and is_whole_head(scan.path):
        return _not_measured(backend, f"a whole head: {backend.name} needs the brain alone")
    try:
        volume = read_volume(scan.path)
        data = volume.data.clip(0, 1) if context.synthetic else scale_intensities(volume.data, "minmax", scan.path)
        grid = Grid(volume.data.shape, volume.affine)
        return backend(Image(data, grid, context.people, registration_scale(scan.path)), context.labels)
    except UserError as error:
        return _not_measured(backend, " ".join(str(error).split()))


def _not_measured(backend: Backend, reason: str) -> Measured:
    return Measured(dict.fromkeys(backend.columns, math.nan), None, reason)


def _state(context: _Context, scan: Scan) -> Record:
    """What decides the volumes of an image: where it differs, the image is measured again."""
    status = scan.path.stat()
    return {
        "backend": context.backend.name,
        "weights_sha256": context.backend.sha256,
        "version": brainldm.__version__,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "people": context.people,
        "scale": registration_scale(scan.path),
    }


def _labels_path(context: _Context, scan: Scan) -> Path:
    space = "".join(_SPACE.findall(scan.path.name)[:1])
    name = f"{scan.name}{space}_desc-{context.backend.label}_dseg.nii.gz"
    return context.out / scan.participant_id / (scan.session_id or "") / "anat" / name


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _kept(context: _Context, scans: Sequence[Scan]) -> dict[str, Record]:
    """The records of images that need not be measured again, by name, in the order of the scans."""
    try:
        lines = (context.out / LOG).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    known: dict[str, Record] = {}
    for line in lines:
        try:
            record = json.loads(line)
            known[record["name"]] = record
        except (ValueError, TypeError, KeyError):  # the line that a killed run was writing
            continue
    return {scan.name: known[scan.name] for scan in scans if _holds(context, scan, known.get(scan.name))}


def _holds(context: _Context, scan: Scan, record: Record | None) -> bool:
    if record is None or any(record.get(name) != value for name, value in _state(context, scan).items()):
        return False
    if set(record.get("volumes_ml", ())) != set(context.backend.columns):
        return False
    return not context.labels or bool(record.get("reason")) or _labels_path(context, scan).is_file()
