"""The tables of a measured dataset: volumes, label maps' structures, and the people with volumes filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import brainldm
from brainldm.datasets.bids import write_dataset_files
from brainldm.datasets.columns import STANDARD
from brainldm.datasets.covariates import BRAIN, VENTRICLES, Covariates, is_missing
from brainldm.datasets.scans import Scan
from brainldm.evaluation.datasets import description
from brainldm.evaluation.measures.backend import Backend
from brainldm.runtime.files import write_atomically, write_json

Rows = Sequence[tuple[Scan, Mapping[str, Any]]]

_IGNORED = ("/volumes.tsv", "/volumes.json", "/measure.json", "/measured*.jsonl", "/excluded.tsv")
_FILLED = (VENTRICLES.name, BRAIN.name)


def write_tables(out: Path, source: Path, backend: Backend, rows: Rows, labels: bool, fill: bool) -> None:
    """Write everything of the derivative `out` but its label maps; `rows` are the scans with their records."""
    sessions = any(scan.session_id for scan, _ in rows)
    _write_volumes(out, backend, rows, sessions)
    if labels:
        write_structures(out, backend)
    write_atomically(out / ".bidsignore", "".join(f"{name}\n" for name in _IGNORED).encode())
    weights = f", weights {backend.sha256}" if backend.sha256 else ""
    said = description(source)
    write_dataset_files(
        out,
        name=f"Brain volumes measured by brainldm ({backend.name})",
        rows=[_person(scan, record, sessions, fill) for scan, record in rows],
        columns=_columns(rows, sessions),
        generated_by={
            "Name": "brainldm",
            "Version": brainldm.__version__,
            "Description": f"brainldm measure, backend {backend.name}{weights}",
        },
        extra={
            "SourceDatasets": [{"URL": f"file:./{source.resolve().name}"}],
            **{key: said[key] for key in ("Synthetic", "EmbeddedPopulation") if key in said},
        },
        readme=_README.format(name=backend.name, weights=weights, count=len(rows)),
    )


def write_structures(out: Path, backend: Backend) -> None:
    """Write the table of the numbers in the label maps of `backend`, for all that lie below `out`."""
    lines = ["index\tname", "0\tbackground", *(f"{index}\t{name}" for index, name in backend.structures.items())]
    write_atomically(out / f"desc-{backend.label}_dseg.tsv", ("\n".join(lines) + "\n").encode())


def _write_volumes(out: Path, backend: Backend, rows: Rows, sessions: bool) -> None:
    ids = ["participant_id", *(["session_id"] if sessions else [])]
    lines = ["\t".join([*ids, *backend.columns, "reason"])]
    for scan, record in rows:
        volumes = [_number(record["volumes_ml"][name]) for name in backend.columns]
        who = [scan.participant_id, *([scan.session_id or "n/a"] if sessions else [])]
        lines.append("\t".join([*who, *volumes, record["reason"] or "n/a"]))
    write_atomically(out / "volumes.tsv", ("\n".join(lines) + "\n").encode())
    described = {name: {"Description": text, "Units": "mL"} for name, text in backend.columns.items()}
    described["reason"] = {"Description": "why nothing was measured"}
    write_json(out / "volumes.json", described)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _person(scan: Scan, record: Mapping[str, Any], sessions: bool, fill: bool) -> dict[str, Any]:
    known = dict(scan.covariates)
    for name in _FILLED if fill else ():
        measured = record["volumes_ml"].get(name)
        if is_missing(known.get(name, "n/a")) and measured is not None:
            known[name] = f"{measured:.3f}"
    who = {"participant_id": scan.participant_id, **({"session_id": scan.session_id or "n/a"} if sessions else {})}
    return {**known, **who}


def _columns(rows: Rows, sessions: bool) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys([*STANDARD, *(name for scan, _ in rows for name in scan.covariates)])
    ours = Covariates().column_descriptions()
    columns = {"session_id": {"Description": "session of the scan"}} if sessions else {}
    return columns | {
        name: ours.get(name, {"Description": "as in the source"})
        for name in names
        if name not in ("participant_id", "session_id")
    }


_README = """Brain volumes of {count} T1w images

Measured by brainldm with the backend {name}{weights}. volumes.tsv has a row for each image, in mL; volumes.json says
what each column is. Volumes are those of the people, as imaged, but for brain_ml, which is normalised for head size.

Research use only; not a medical device and not for diagnosis.
"""
