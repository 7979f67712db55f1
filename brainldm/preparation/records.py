"""What `prepare` leaves of each scan: an image with a sidecar, or a record of why there is none.

The record is written last, so a scan with a record is done and a scan without one is not. Nothing in it depends on
when or where it was written.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.datasets.scans import Scan
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256, read_json, write_json
from brainldm.volumes.grids import SPACE, Grid
from brainldm.volumes.nifti import write_volume

EXCLUDED = "excluded"
"""Folder of the records, and where there is one the image, of scans that are not passed on."""


@dataclasses.dataclass(frozen=True)
class OutputPaths:
    """The files of one scan in the output folder `out`."""

    out: Path
    scan: Scan

    @property
    def folder(self) -> Path:
        """Where the image lies."""
        return self.out / self.scan.participant_id / (self.scan.session_id or "") / "anat"

    @property
    def image(self) -> Path:
        """The prepared image. Uncompressed, so that training reads it without unpacking."""
        return self.folder / f"{self.scan.name}_space-{SPACE}_T1w.nii"

    @property
    def sidecar(self) -> Path:
        """The record of a prepared scan."""
        return self.image.with_suffix(".json")

    @property
    def quarantined(self) -> Path:
        """The image of a scan that was registered, but not well enough."""
        return self.out / EXCLUDED / f"{self.scan.name}.nii"

    @property
    def exclusion(self) -> Path:
        """The record of a scan that is not passed on."""
        return self.out / EXCLUDED / f"{self.scan.name}.json"


def record_of(paths: OutputPaths, recorded: Mapping[str, Any], verify: bool = False) -> dict[str, Any] | None:
    """The record of a scan that is done with these options, or None when it is to do.

    It is to do when there is no record, the options are others, the image is missing or of another length, or the
    scan or its mask changed: another size, or newer than the record and of another SHA-256. `verify` compares the
    SHA-256 of the scan, the mask and the image in any case.
    """
    for path in (paths.sidecar, paths.exclusion):
        try:
            record = read_json(path)
            written = path.stat().st_mtime_ns
        except (UserError, OSError):
            continue
        if not isinstance(record, dict) or record.get("Options") != dict(recorded):
            continue
        if any(
            _changed(source, record.get(f"{what}Bytes"), record.get(f"{what}SHA256"), written, verify)
            for what, source in (("Source", paths.scan.path), ("Mask", paths.scan.mask))
        ):
            continue
        if path == paths.exclusion:
            return record
        if _size(paths.image) == record.get("Bytes") and not (
            verify and file_sha256(paths.image) != record.get("SHA256")
        ):
            return record
    return None


def write_prepared(paths: OutputPaths, record: Mapping[str, Any], image: np.ndarray, grid: Grid) -> None:
    """Write image [D, H, W] and sidecar of a scan, and remove what an earlier run left of it."""
    _remove(paths.sidecar, paths.exclusion, paths.quarantined)
    content = write_volume(paths.image, image, grid.affine, description="brainldm prepare")
    hashed = {"SHA256": hashlib.sha256(content).hexdigest(), "Bytes": len(content)}
    write_json(paths.sidecar, {**record, **hashed})


def write_excluded_scan(paths: OutputPaths, record: Mapping[str, Any], image: np.ndarray | None, grid: Grid) -> None:
    """Write the record of a scan that is not passed on, with its image if it got so far."""
    _remove(paths.sidecar, paths.image, paths.exclusion, paths.quarantined)
    for folder in (paths.folder, paths.folder.parent, paths.folder.parent.parent):
        if folder != paths.out and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if image is not None:
        write_volume(paths.quarantined, image, grid.affine, description="brainldm prepare: excluded")
    write_json(paths.exclusion, record)


def hashes(scan: Scan) -> dict[str, Any]:
    """SHA-256 and size of the scan's file and of its mask, None for what cannot be read."""
    found: dict[str, Any] = {}
    for what, path in (("Source", scan.path), ("Mask", scan.mask)):
        if path is not None:
            found[f"{what}SHA256"], found[f"{what}Bytes"] = file_sha256(path), _size(path)
    return found


def _changed(path: Path | None, size: int | None, sha256: str | None, written_ns: int, verify: bool) -> bool:
    if path is None:
        return size is not None
    try:
        status = path.stat()
    except OSError:
        return size is not None
    if status.st_size != size:
        return True
    return (verify or status.st_mtime_ns > written_ns) and file_sha256(path) != sha256


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _remove(*files: Path) -> None:
    for path in files:
        path.unlink(missing_ok=True)
