"""What `check` gives: the fingerprint of a dataset as data."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from brainldm.datasets.scans import Excluded
from brainldm.fingerprint.data_costs import Cost
from brainldm.fingerprint.distributions import Column

LEVELS = ("error", "warning", "note")
"""error: something would be rejected, or results would mislead. warning: worth a decision. note: good to know."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One sentence or two, at one of LEVELS."""

    level: str
    text: str


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """Scans that are the same: the same "file", the same "voxels" in other files, or made from the same "source"."""

    what: str
    scans: tuple[str, ...]
    splits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Everything that was seen of a dataset.

    `kind` is "prepared" when most scans lie on a training grid, else "raw"; a raw scan is rejected when it cannot be
    read, a prepared one also when training would refuse it. `grid` is the grid that the data are for. `geometry` counts
    scans by shape and so on; `intensity` is the spread over the scans read, which are in `scans`. `findings` are
    sorted, the worst first.
    """

    source: str
    kind: str
    counts: dict[str, int]
    grid: dict[str, Any]
    findings: list[Finding]
    rejected: list[Excluded]
    geometry: dict[str, dict[str, int]]
    intensity: dict[str, dict[str, float]]
    columns: list[Column]
    repeated_rows: dict[str, int]
    splits: dict[str, int]
    in_several_splits: dict[str, list[str]]
    duplicates: list[Duplicate]
    costs: list[Cost]
    scans: list[dict[str, Any]]
    measured: dict[str, float | int]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: the same for the same files, but for what lies under "measured"."""
        plain = dataclasses.asdict(self)
        for one in plain["rejected"]:
            one["path"] = str(one["path"] or "")
        return json.loads(json.dumps(plain))
