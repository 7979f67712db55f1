"""What a folder of synthetic brains is to hold, written into it before the first brain."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from brainldm import __version__
from brainldm.datasets.scans import is_participant_id, scan_name
from brainldm.diffusion.sampling import Sampling
from brainldm.generation import archive
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json, write_json
from brainldm.runtime.rules import BOOL, TEXT, Rule, check, is_list, one_of, whole
from brainldm.runtime.shards import Shard
from brainldm.weights.parameter_files import KINDS

JOB = "generation.json"
"""The file of the job, which marks a folder as one to go on with."""
_FORMAT = 1

Row = Mapping[str, float | str]


@dataclasses.dataclass(frozen=True)
class Job:
    """What decides about every byte of a generated dataset, apart from the machine.

    `kind` is one of `parameter_files.KINDS`, and `sampling` None of those that draw in one pass. `conditions_sha256` is
    of the rows of conditions; `shards` runs share the work, who take turns of `chunk_size` brains each. `about` is what
    the dataset's files say besides: descriptions of the columns, the model's origin. `repeat` consecutive brains share
    their noise, as those of a sweep do. `ids` are the subjects' where a table gives them, else they are numbered.
    With `sessions` such brains are one person's, who has one of the `ids`. `archive` is "tar" where
    each shard puts its brains into one. `begun` is a date, YYYY-MM-DD.
    """

    model_sha256: str
    kind: str
    sampling: Sampling | None
    seed: int
    batch_size: int
    count: int
    conditions_sha256: str
    shards: int
    chunk_size: int
    about: dict[str, Any]
    repeat: int = 1
    ids: tuple[str, ...] | None = None
    version: str = __version__
    begun: str = ""
    sessions: bool = False
    archive: str | None = None

    @property
    def people(self) -> int:
        """How many subjects there are."""
        return self.count // self.repeat if self.sessions else self.count

    def subject_id(self, index: int) -> str:
        """Whose brain it is: of the table, or `sub-0001` for the first, with as many digits as the last one needs."""
        person = index // self.repeat if self.sessions else index
        if self.ids is not None:
            return self.ids[person]
        return f"sub-{person + 1:0{max(4, len(str(self.people)))}d}"

    def session_id(self, index: int) -> str | None:
        """`ses-01` for the first of a person, None where a person has one brain."""
        return f"ses-{index % self.repeat + 1:02d}" if self.sessions else None

    def name(self, index: int) -> str:
        """What a brain is called: `sub-0001`, or `sub-0001_ses-01`."""
        return scan_name(self.subject_id(index), self.session_id(index))

    def indices(self, shard: Shard) -> list[int]:
        """The brains of a shard, ascending: chunks of `chunk_size` are dealt to the shards in turn."""
        first, step = (shard[0] - 1) * self.chunk_size, self.shards * self.chunk_size
        return [
            index
            for start in range(first, self.count, step)
            for index in range(start, min(start + self.chunk_size, self.count))
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of the job's file."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}


def conditions_sha256(rows: Sequence[Row]) -> str:
    """A hash of rows of conditions, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def read_job(out: str | os.PathLike) -> Job:
    """The job of a folder. Raises UserError when there is none, or none that this version understands."""
    path = Path(out) / JOB
    if not path.is_file():
        raise UserError(f"{out}: holds no {JOB}, so `brainldm generate` did not make it. Give a folder that it made.")
    content = read_json(path)
    try:
        check(f"{path}: the job", content, _RULES, _LATER)
        content.pop("format")
        sampling, ids = content["sampling"], content["ids"]
        content["ids"] = None if ids is None else tuple(ids)
        job = Job(**{**content, "sampling": None if sampling is None else Sampling(**sampling)})
        if ids is not None and len(ids) != job.people:
            raise UserError(f"{path}: has {len(ids)} ids for {job.people} people.")
        return job
    except TypeError as error:  # a setting that `Sampling` does not have
        raise UserError(f"{path}: sampling cannot be understood ({error}).") from error
    except UserError as error:
        raise UserError(f"{error} The file was damaged, or made by another version.") from error


def begin_or_continue(out: Path, job: Job) -> Job:
    """Write the job into `out`, or hold it against the one that is there, and return that.

    Raises UserError when `out` was begun with another job.
    """
    if not (out / JOB).exists():
        write_json(out / JOB, dataclasses.replace(job, begun=date.today().isoformat()).to_json())
    before = read_job(out)
    old, new = (dataclasses.replace(one, begun="").to_json() for one in (before, job))
    changed = [name for name in new if json.dumps(old[name]) != json.dumps(new[name])]
    if changed:
        words = "; ".join(f"{_WORDS[name]} {_shown(old[name])}, now {_shown(new[name])}" for name in changed)
        raise UserError(
            f"{out}: was begun as another dataset ({words}). Give the arguments of the first run, or a new folder."
        )
    return before


_MOST = 10**7
_TABLE = Rule("a table of names and values", lambda v: isinstance(v, dict))
_RULES = {
    "format": one_of(_FORMAT),
    "model_sha256": TEXT,
    "kind": one_of(*KINDS),
    "sampling": Rule("null, or a table", lambda v: v is None or _TABLE.allows(v)),
    "seed": whole(0, 2**63 - 1),
    "batch_size": whole(1, _MOST),
    "count": whole(1, _MOST),
    "conditions_sha256": TEXT,
    "shards": whole(1, _MOST),
    "chunk_size": whole(1, _MOST),
    "about": Rule(
        "what the dataset's files say",
        lambda v: _TABLE.allows(v) and set(v) == _ABOUT and _TABLE.allows(v["columns"]) and TEXT.allows(v["note"]),
    ),
    "repeat": whole(1, _MOST),
    "ids": Rule("null, or BIDS ids", lambda v: v is None or (is_list(v) and all(map(_is_id, v)))),
    "version": TEXT,
    "begun": TEXT,
}
"""What the file of a job holds."""
_LATER = {"sessions": BOOL, "archive": Rule("null, or tar", lambda v: v in (None, *archive.KINDS))}
"""What it holds besides, unless an earlier version wrote it."""
_ABOUT = {"columns", "note", "trained_on", "embedded_population"}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and is_participant_id(value)


_WORDS = {
    "format": "format",
    "model_sha256": "model",
    "kind": "kind of model",
    "sampling": "sampling",
    "seed": "seed",
    "batch_size": "batch size",
    "count": "number of brains",
    "conditions_sha256": "conditions",
    "shards": "shards",
    "chunk_size": "chunk size",
    "about": "note or columns",
    "ids": "subjects",
    "repeat": "brains with the same noise",
    "sessions": "sessions of a person",
    "archive": "archive",
    "version": "version of brainldm",
    "begun": "begun",
}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())[:120]
    return str(value)[:12]
