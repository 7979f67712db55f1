"""BIDS datasets: where the images lie and what participants.tsv says of them."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from brainldm.data.covariates import Covariates
from brainldm.data.volumes import write_atomically
from brainldm.errors import UserError

BIDS_VERSION = "1.10.0"
_PARTICIPANT = re.compile(r"sub-[0-9A-Za-z+]{1,64}")
_SESSION = re.compile(r"ses-[0-9A-Za-z+]{1,64}")


@dataclasses.dataclass(frozen=True)
class Record:
    """One scan: whose it is, where it lies, and its conditions in physical units."""

    participant_id: str
    session_id: str | None
    path: Path
    covariates: dict[str, float | str]

    @property
    def name(self) -> str:
        """`sub-X` or `sub-X_ses-Y`."""
        return self.participant_id + (f"_{self.session_id}" if self.session_id else "")


def image_path(root: Path, participant_id: str, space: str | None = None) -> Path:
    """Where the T1w image of a participant without sessions goes."""
    label = f"_space-{space}" if space else ""
    return Path(root) / participant_id / "anat" / f"{participant_id}{label}_T1w.nii.gz"


def read_participants(path: str | Path) -> pd.DataFrame:
    """A participants table as text, one row per scan; `path` is the table or the root of a dataset.

    Raises UserError when it is absent, unreadable or empty, or has no column participant_id.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such folder or table. Give the root of a BIDS dataset (it holds participants.tsv)."
        )
    if path.is_dir():
        path = path / "participants.tsv"
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent}: no participants.tsv, so the conditions of the scans are unknown. Add a tab-separated "
            "table with participant_id and one column per condition."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a tab-separated table ({error}).") from error
    if "participant_id" not in table.columns:
        raise UserError(
            f"{path}: no column participant_id (found: {', '.join(table.columns)}). Is the table separated by tabs?"
        )
    if table.empty:
        raise UserError(f"{path}: no participants in it.")
    return table


def read_dataset(root: str | Path, covariates: Covariates) -> list[Record]:
    """The scans of a BIDS dataset in the order of their names, with their conditions.

    A row of participants.tsv is a scan; with a session_id column a participant may have several.
    Raises UserError for a missing image, table, column or value, a repeated row, or an id that is not BIDS.
    """
    root = Path(root)
    table = read_participants(root)
    records = []
    for row in table.to_dict("records"):
        participant, session = row["participant_id"], row.get("session_id") or None
        if not _PARTICIPANT.fullmatch(participant) or (session and not _SESSION.fullmatch(session)):
            raise UserError(
                f"{root / 'participants.tsv'}: {participant!r} {session or ''} is not a BIDS id. "
                "Use sub- (and ses-) followed by letters and digits."
            )
        where = f"{root / 'participants.tsv'}, {participant}{' ' + session if session else ''}"
        conditions = covariates.parse(row, where)
        records.append(Record(participant, session, _find_image(root, participant, session), conditions))
    names = [record.name for record in records]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise UserError(f"{root / 'participants.tsv'}: {', '.join(repeated[:5])} appear more than once.")
    return sorted(records, key=lambda record: record.name)


def _find_image(root: Path, participant: str, session: str | None) -> Path:
    folder = root / participant / (session or "") / "anat"
    stem = participant + (f"_{session}" if session else "")
    found = sorted(path for path in folder.glob(f"{stem}*_T1w.nii*") if path.name.endswith((".nii", ".nii.gz")))
    if len(found) != 1:
        what = "no T1w image" if not found else f"{len(found)} T1w images ({', '.join(p.name for p in found[:3])})"
        raise UserError(f"{folder}: {what} for {stem}. Exactly one {stem}[_space-...]_T1w.nii.gz is wanted.")
    return found[0]


def write_dataset_files(
    root: str | Path,
    *,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Mapping[str, Any]],
    generated_by: Mapping[str, Any],
    readme: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write dataset_description.json, participants.tsv, participants.json and README of a derivative dataset.

    `rows` hold participant_id and the values; `columns` describes every other column (Description, Units,
    Levels) in the order wanted; `extra` goes into dataset_description.json.
    """
    root = Path(root)
    description = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [dict(generated_by)],
        **(extra or {}),
    }
    table = pd.DataFrame(list(rows), columns=["participant_id", *columns])
    text = io.StringIO()
    table.to_csv(text, sep="\t", index=False, lineterminator="\n", na_rep="n/a")
    write_json(root / "dataset_description.json", description)
    write_json(root / "participants.json", columns)
    write_atomically(root / "README", readme.encode())
    write_atomically(root / "participants.tsv", text.getvalue().encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, indented, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises UserError when the file is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error


def require_new_folder(path: str | Path, own: str | None = None) -> Path:
    """`path` when it does not exist, is empty, or holds the file `own` that marks it as ours to continue.

    Raises UserError otherwise, so that nothing is ever overwritten.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file. Give a folder that does not exist yet.")
    if path.is_dir() and any(path.iterdir()) and not (own and (path / own).exists()):
        raise UserError(f"{path}: already holds something else, and nothing is overwritten. Choose another folder.")
    return path
