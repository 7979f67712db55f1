"""Whose scan a file is: ids that BIDS allows and that cannot lead out of a folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from brainldm.datasets.bids import scan_name

_ENTITIES = re.compile(r"sub-([0-9A-Za-z+]{1,64})(?:_ses-([0-9A-Za-z+]{1,64}))?(?=[_.])")


class NotUsable(Exception):
    """One scan that cannot be used; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan as it was found: whose it is, where it lies, what tables say of it, and a brain mask if there is one.

    `values` are text: the four standard conditions in standard units ("n/a" when missing) and the other columns.
    """

    participant_id: str
    session_id: str | None
    path: Path
    values: dict[str, str]
    mask: Path | None = None

    @property
    def name(self) -> str:
        """`sub-X` or `sub-X_ses-Y`."""
        return scan_name(self.participant_id, self.session_id)


def ids_of_file(path: Path) -> tuple[str, str | None]:
    """Participant and session of a file: its own sub-X_ses-Y, the folder of FreeSurfer's X/mri/*.mgz, else its name.

    Raises NotUsable when that gives no id.
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

    Raises NotUsable for an id that would lead out of a folder, has other letters than A to Z, or is
    longer than 64.
    """
    label = text.strip().removeprefix(prefix)
    if re.search(r"[/\\\0]|^\.+$", label):
        raise NotUsable(f"the id {text!r} could lead out of the folder")
    label = re.sub(r"[-_. ()\[\]#,]", "", label)
    if not re.fullmatch(r"[0-9A-Za-z+]{1,64}", label):
        raise NotUsable(f"{text!r} gives no id: 1 to 64 letters (A to Z) and digits are wanted")
    return prefix + label
