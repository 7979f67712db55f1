"""The tables of a prepared dataset: participants, excluded scans, quality of each scan, and the page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import brainldm
from brainldm.datasets.bids import write_dataset_files, write_excluded
from brainldm.datasets.columns import STANDARD
from brainldm.datasets.covariates import Covariates
from brainldm.datasets.find import Found
from brainldm.datasets.scans import Excluded, Scan
from brainldm.preparation.quality_page import write_quality_page
from brainldm.preparation.records import EXCLUDED
from brainldm.preparation.scan import PrepareOptions
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json, write_atomically
from brainldm.volumes.grids import SPACE
from brainldm.volumes.template import COPYRIGHT_NOTICE

Results = Sequence[tuple[Scan, dict[str, Any] | None]]

_IGNORED = ("/prepare.json", "/excluded.tsv", "/quality.tsv", "/qc.html", f"/{EXCLUDED}/")
_QUALITY = ("similarity", "overlap", "coverage", "scale", "rotation_degrees")


def write_tables(out: Path, source: Path, found: Found, results: Results, options: PrepareOptions) -> None:
    """Write everything of a finished dataset but its images; participants.tsv, which makes it one, last."""
    kept = [(scan, record) for scan, record in results if record is not None and "Reason" not in record]
    refused = write_excluded_table(out, found, results)
    write_atomically(out / ".bidsignore", "".join(f"{name}\n" for name in _IGNORED).encode())
    _write_quality(out / "quality.tsv", kept)
    write_quality_page(out, kept, [(s, r) for s, r in results if r is not None and "Reason" in r], refused, options)
    whole = sum(not record.get("SkullStripped", False) for _, record in kept)
    sessions = any(scan.session_id for scan, _ in kept)
    columns = _columns(source, kept, sessions)
    write_dataset_files(
        out,
        name=f"T1w scans prepared by brainldm ({options.grid})",
        rows=[
            {
                "participant_id": scan.participant_id,
                **({"session_id": scan.session_id or "n/a"} if sessions else {}),
                **{name: scan.covariates.get(name, "n/a") for name in columns if name != "session_id"},
            }
            for scan, _ in kept
        ],
        columns=columns,
        generated_by={"Name": "brainldm", "Version": brainldm.__version__, "Description": "brainldm prepare"},
        extra={"SourceDatasets": [_source_dataset(source)]},
        readme=_README.format(
            count=len(kept),
            refused=len(refused),
            grid="x".join(map(str, options.target.shape)),
            spacing=options.target.spacing_mm[0],
            space=SPACE,
            skull=f"{len(kept) - whole} skull-stripped, {whole} whole heads",
            notice=COPYRIGHT_NOTICE,
        ),
    )


def write_excluded_table(out: Path, found: Found, results: Results) -> list[Excluded]:
    """Write excluded.tsv of what was not found usable and of what was refused since; returns its entries."""
    refused = [
        Excluded(scan.name, scan.path, record["Stage"], record["Reason"])
        for scan, record in results
        if record is not None and "Reason" in record
    ]
    entries = sorted([*found.excluded, *refused], key=lambda entry: (entry.name, str(entry.path or "")))
    write_excluded(out / "excluded.tsv", entries)
    return entries


def _columns(source: Path, kept: Results, sessions: bool) -> dict[str, dict[str, Any]]:
    """What participants.json says of each column: our words for the conditions, the source's for the rest."""
    ours = Covariates().column_descriptions()
    theirs = _source_json(source, "participants.json")
    columns: dict[str, dict[str, Any]] = {}
    if sessions:
        columns["session_id"] = {"Description": "session of the scan"}
    names = list(dict.fromkeys([*STANDARD, *(name for scan, _ in kept for name in scan.covariates)]))
    for name in names:
        if name in ("participant_id", "session_id"):
            continue
        said = theirs.get(name)
        columns[name] = ours.get(name) or (said if isinstance(said, dict) else {"Description": "as in the source"})
    return columns


def _source_dataset(source: Path) -> dict[str, str]:
    """What dataset_description.json says of the source: its DOI when it has one, else its folder's name."""
    description = _source_json(source, "dataset_description.json")
    doi = description.get("DatasetDOI")
    return {"DOI": doi} if isinstance(doi, str) else {"URL": f"file:./{source.resolve().name}"}


def _source_json(source: Path, name: str) -> Mapping[str, Any]:
    try:
        content = read_json((source if source.is_dir() else source.parent) / name)
    except (UserError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_quality(path: Path, kept: Results) -> None:
    head = ("participant_id", "session_id", *_QUALITY, "skull_stripped", "intensity_low", "intensity_high")
    lines = ["\t".join(head)]
    for scan, record in kept:
        fit, scaling = record["Registration"], record["IntensityScaling"]
        cells = [
            scan.participant_id,
            scan.session_id or "n/a",
            *(fit[name] for name in ("Similarity", "Overlap", "Coverage", "Scale", "RotationDegrees")),
            "yes" if record["SkullStripped"] else "no",
            scaling["Low"],
            scaling["High"],
        ]
        lines.append("\t".join(map(str, cells)))
    write_atomically(path, ("\n".join(lines) + "\n").encode())


_README = """T1-weighted scans prepared by brainldm

{count} scans ({skull}) on a {grid} grid of {spacing:g} mm voxels in {space}, RAS; {refused} were left out
(excluded.tsv says why). Rigid registration: sizes are those of the people. Intensities run from 0 to 1, and the
JSON file beside each image records the transform, the scaling and the hash of its source.

Look at qc.html before training. quality.tsv holds its numbers, and the folder excluded/ the records, and where
there is one the image, of scans whose registration was not good enough.

The template: {notice}.
"""
