"""What a scan is: whose, which file, what is known of it; and what is said of one that cannot be used.

Ids are those that BIDS allows, and none can lead out of a folder.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.runtime.errors import UserError

_PARTICIPANT = re.compile(r"sub-[0-9A-Za-z+]{1,64}")
_SESSION = re.compile(r"ses-[0-9A-Za-z+]{1,64}")
_SCAN = re.compile(r"sub-[0-9A-Za-z+]{1,64}(?:_ses-[0-9A-Za-z+]{1,64})?")
_ENTITIES = re.compile(r"sub-([0-9A-Za-z+]{1,64})(?:_ses-([0-9A-Za-z+]{1,64}))?(?=[_.])")


class ScanError(UserError):
    """One scan that cannot be used; the text is the reason.

    `stage` is the step that found it. Where `prepare` got that far, `sidecar` holds what it would have recorded and
    `image` the scan on the target grid, [D, H, W].
    """

    def __init__(
        self, reason: str, stage: str = "find", sidecar: dict[str, Any] | None = None, image: np.ndarray | None = None
    ):
        super().__init__(reason)
        self.stage, self.sidecar, self.image = stage, sidecar or {}, image


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan: whose it is, its file, and what its table says of it.

    `covariates` of a scan that `find_scans` found are the text of every column ("n/a" where missing), the four
    standard conditions in standard units among them; of one that `read_dataset` read they are the model's conditions as
    values (years, F or M, mL). `mask` is a brain mask beside it. `split` is what the table says of a dataset that is
    read for training (train, validation or test), and `path` is None where its image is neither there nor needed.
    """

    participant_id: str
    session_id: str | None
    path: Path | None
    covariates: dict[str, Any]
    mask: Path | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        """`sub-X` or `sub-X_ses-Y`."""
        return scan_name(self.participant_id, self.session_id)


@dataclasses.dataclass(frozen=True)
class Excluded:
    """A scan that is left out: its name (as far as it has one), its file, the stage that found out, and why."""

    name: str
    path: Path | None
    stage: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Dataset(Sequence):
    """The scans of a dataset, in the order of their names (a sequence of them), and what was left out."""

    scans: tuple[Scan, ...]
    excluded: tuple[Excluded, ...] = ()

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index):
        return self.scans[index]


def scan_name(participant_id: str, session_id: str | None) -> str:
    """`sub-X` or `sub-X_ses-Y`."""
    return participant_id + (f"_{session_id}" if session_id else "")


def scan_ids(name: str) -> tuple[str, str | None]:
    """The reverse of `scan_name`."""
    participant, _, session = name.partition("_")
    return participant, session or None


def is_participant_id(text: str) -> bool:
    """Whether `text` is sub- and a BIDS label, which cannot lead out of a folder."""
    return bool(_PARTICIPANT.fullmatch(text))


def is_session_id(text: str) -> bool:
    """Whether `text` is ses- and a BIDS label."""
    return bool(_SESSION.fullmatch(text))


def is_scan_name(text: str) -> bool:
    """Whether `text` is what `scan_name` makes of BIDS ids."""
    return bool(_SCAN.fullmatch(text))


def is_t1w_name(name: str) -> bool:
    """Whether BIDS calls a file of this name a T1-weighted image."""
    return name.endswith(("_T1w.nii", "_T1w.nii.gz"))


def inside(root: str | Path, path: str | Path) -> bool:
    """Whether `path`, with every symbolic link followed, lies under `root`."""
    # realpath, unlike resolve, has an answer for a link that leads to itself
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def own_table(root: str | Path) -> Path:
    """Where a dataset has its participants.tsv. Raises UserError when that is a link that leads out of the dataset."""
    path = Path(root) / "participants.tsv"
    if path.is_symlink() and not inside(root, path):
        raise UserError(f"{path}: a symbolic link leads out of the dataset. Copy the table into it.")
    return path


def ids_of_file(path: Path) -> tuple[str, str | None]:
    """Participant and session of a file: its own sub-X_ses-Y, the folder of FreeSurfer's X/mri/*.mgz, else its name.

    Raises ScanError when that gives no id.
    """
    entities = _ENTITIES.match(path.name)
    if entities:
        return f"sub-{entities[1]}", f"ses-{entities[2]}" if entities[2] else None
    stem = re.sub(r"\.(nii|nii\.gz|mgh|mgz)$", "", path.name, flags=re.IGNORECASE)
    if path.name.lower().endswith((".mgz", ".mgh")) and path.parent.name == "mri" and path.parent.parent.name:
        stem = path.parent.parent.name
    return clean_id(re.sub(r"(?<=.)[-_.]T1w?$", "", stem, flags=re.IGNORECASE), "sub-"), None


def clean_id(text: str, prefix: str) -> str:
    """`text` as a BIDS id: without spaces and punctuation between its letters and digits.

    Raises ScanError for an id that would lead out of a folder, has other letters than A to Z, or is
    longer than 64.
    """
    label = text.strip().removeprefix(prefix)
    if re.search(r"[/\\\0]|^\.+$", label):
        raise ScanError(f"the id {text!r} could lead out of the folder")
    label = re.sub(r"[-_. ()\[\]#,]", "", label)
    if not re.fullmatch(r"[0-9A-Za-z+]{1,64}", label):
        raise ScanError(f"{text!r} gives no id: 1 to 64 letters (A to Z) and digits are wanted")
    return prefix + label
