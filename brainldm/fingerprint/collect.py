"""The fingerprint of a dataset: what is in it and what would be rejected, before any long run."""

from __future__ import annotations

import dataclasses
import re
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from brainldm.datasets.bids import split_of
from brainldm.datasets.columns import STANDARD
from brainldm.datasets.covariates import Covariates, is_missing
from brainldm.datasets.find import find_scans
from brainldm.datasets.scans import Excluded, Scan, own_table, scan_name
from brainldm.datasets.tables import read_table
from brainldm.fingerprint.data_costs import costs
from brainldm.fingerprint.distributions import describe_columns, spread
from brainldm.fingerprint.duplicates import groups, same_files
from brainldm.fingerprint.findings import findings
from brainldm.fingerprint.inspection import Inspection, Opened, Progress, inspect
from brainldm.fingerprint.options import CheckOptions
from brainldm.fingerprint.record import Duplicate, Fingerprint
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_shape
from brainldm.volumes.grids import Grid, training_grid
from brainldm.volumes.plausibility import SMALLEST_FOV_MM
from brainldm.volumes.probe import Outside

OBLIQUE_DEG = 0.5
"""Axes further than this from the world's are called oblique."""

ALTERED = "not the file that `prepare` wrote: its SHA-256 is another than in the sidecar. Prepare this scan again."

_NOT_COLUMNS = ("participant_id", "session_id")


def collect(
    source: str | Path,
    *,
    table: str | Path | None = None,
    pattern: str | None = None,
    options: CheckOptions | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Fingerprint:
    """The fingerprint of `source`, anything that `find_scans` takes. `progress(what, done, total)` is called
    on the way.

    Raises UserError when there is no source, or nothing in it that could be a scan.
    """
    options = options or CheckOptions()
    began = time.monotonic()
    found = find_scans(source, table=table, pattern=pattern)
    scans = found.scans
    if not scans and not found.excluded:
        raise UserError(f"{source}: no scans in it. Give a BIDS dataset, a folder of NIfTI files, a list or a table.")
    seen = inspect(scans, options, progress)
    kind, grid = _purpose(seen.outsides.values(), options)
    rejected = list(found.excluded)
    rejected += _unreadable(scans, seen)
    repeated = _repeated_rows(source, table)
    if kind == "prepared":
        rejected += _untrainable(scans, seen, grid, options, repeated)
    else:
        rejected += _unfit(scans, seen)
    refused = {one.name for one in rejected}
    geometries = [one.geometry for one in seen.outsides.values() if one.geometry]
    counts = {
        "participants": len({scan.participant_id for scan in scans}),
        "sessions": len({scan.name for scan in scans if scan.session_id}),
        "scans": len(scans),
        "read": len(seen.opened),
        "odd_and_not_read": len(seen.unopened),
        "rejected": len(rejected),
        "usable": sum(scan.name not in refused for scan in scans),
        "compressed": sum(scan.path.name.lower().endswith(".gz") for scan in scans),
        "bytes": sum(one.size for one in seen.outsides.values()),
    }
    splits = {scan.name: value for scan in scans if (value := split_of(scan.covariates))}
    largest = max((geometry.voxels for geometry in geometries), default=0)
    read = [one for one in seen.opened if one.values]
    result = Fingerprint(
        source=str(source),
        kind=kind,
        counts=counts,
        grid={"shape": list(grid.shape), "spacing_mm": float(grid.spacing_mm[0])},
        findings=[],
        rejected=rejected,
        geometry={
            "shape": _count(format_shape(g.shape) for g in geometries),
            "spacing in mm": _count(format_shape(g.spacing_mm) for g in geometries),
            "orientation": _count(
                g.orientation + (", oblique" if g.oblique_deg > OBLIQUE_DEG else "") for g in geometries
            ),
            "data type": _count(g.data_type for g in geometries),
        },
        intensity=spread([one.values for one in read]),
        columns=describe_columns([_columns(scan) for scan in scans], options.covariates),
        repeated_rows=repeated,
        splits=_count(splits.values()),
        in_several_splits=_several(scans, splits),
        duplicates=_duplicates(seen, splits),
        costs=costs(counts["usable"] or len(scans), grid, largest, options.workers, options.sizes),
        scans=[{"name": one.name, **dataclasses.asdict(one.values)} for one in read],
        measured=_measured(seen, len(scans), time.monotonic() - began),
    )
    return dataclasses.replace(result, findings=findings(result, found.notes, options.sizes.cache_gib))


def _purpose(outsides: Iterable[Outside], options: CheckOptions) -> tuple[str, Grid]:
    """Whether the data are raw or prepared, and the grid that they are to be trained on."""
    spacings = Counter(one.geometry.grid_mm if one.geometry else None for one in outsides)
    total, outside = spacings.total(), spacings.pop(None, 0)
    common = spacings.most_common(1)[0][0] if spacings else 1
    kind = "prepared" if total and 2 * outside < total else "raw"
    return kind, training_grid(common if options.spacing_mm is None else options.spacing_mm)


def _unreadable(scans: Sequence[Scan], seen: Inspection) -> list[Excluded]:
    problems = {name: one.problem for name, one in seen.outsides.items() if one.problem}
    problems |= {one.name: one.problem for one in seen.opened if one.problem}
    for name in seen.altered:
        problems.setdefault(name, ALTERED)
    return [
        Excluded(scan.name, scan.path, "reading", problems[scan.name].removeprefix(f"{scan.path}: "))
        for scan in scans
        if scan.name in problems
    ]


def _unfit(scans: Sequence[Scan], seen: Inspection) -> list[Excluded]:
    """What `prepare` would refuse of what can be read: fields of view too small for a brain, maps of labels."""
    labels = {one.name for one in seen.opened if one.labels}
    rejections = []
    for scan in scans:
        geometry = seen.outsides[scan.name].geometry
        sides = [n * mm for n, mm in zip(geometry.shape, geometry.spacing_mm, strict=True)] if geometry else []
        if sides and min(sides) < SMALLEST_FOV_MM:
            size = " x ".join(f"{side:.0f}" for side in sides)
            reason = f"the field of view is {size} mm, less than a brain ({SMALLEST_FOV_MM} mm along each axis)"
            rejections.append(Excluded(scan.name, scan.path, "reading", reason))
        elif scan.name in labels:
            reason = "a map of labels (whole numbers, constant over regions), not a T1w image"
            rejections.append(Excluded(scan.name, scan.path, "reading", reason))
    return rejections


def _repeated_rows(source: str | Path, table: str | Path | None) -> dict[str, int]:
    """Scans with more than one row in the tables of participants, and how many."""
    paths = [own_table(source)] if Path(source).is_dir() else []
    paths += [Path(table)] if table else []
    repeated: dict[str, int] = {}
    for one in (read_table(path) for path in paths if path.exists()):
        if one.id_column:
            sessions = one.session_column or ""
            names = Counter(
                scan_name(row[one.id_column], None if is_missing(row.get(sessions, "")) else row[sessions])
                for row in one.rows
            )
            repeated |= {name: count for name, count in names.items() if count > 1}
    return repeated


def _untrainable(
    scans: Sequence[Scan], seen: Inspection, grid: Grid, options: CheckOptions, repeated: Mapping[str, int]
) -> list[Excluded]:
    """What training would refuse: another grid, conditions that are missing or odd, values outside [0, 1], two rows."""
    opened = {one.name: one for one in seen.opened}
    unreadable = {one.name for one in _unreadable(scans, seen)}
    rejections = []
    for scan in scans:
        if scan.name in unreadable:
            continue
        one = opened.get(scan.name)
        reasons = [
            *_wrong_grid(seen.outsides[scan.name], grid),
            *_wrong_conditions(scan, options.covariates),
            *_wrong_range(one, options.scaling),
            *([f"{repeated[scan.name]} rows of participants.tsv are of it"] if scan.name in repeated else []),
        ]
        if reasons:
            rejections.append(Excluded(scan.name, scan.path, "training", "; ".join(reasons)))
    return rejections


def _wrong_grid(outside: Outside, grid: Grid) -> list[str]:
    geometry, wanted = outside.geometry, float(grid.spacing_mm[0])
    # A finer training grid is averaged down.
    if geometry is None or (geometry.grid_mm is not None and geometry.grid_mm <= wanted):
        return []
    if geometry.grid_mm is not None:
        return [f"voxels of {geometry.grid_mm} mm, and training is at {wanted:g} mm"]
    text = f"{format_shape(geometry.ras_shape)} voxels from {_place(geometry.first_mm)} mm"
    return [
        f"not on the training grid: {text}, where {format_shape(grid.shape)} from "
        f"{_place(grid.affine[:3, 3])} mm is wanted"
    ]


def _place(point: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in point) + ")"


def _wrong_conditions(scan: Scan, covariates: Covariates) -> list[str]:
    reasons = []
    for item in covariates:
        cell = scan.covariates.get(item.name, "")
        if is_missing(cell):
            reasons.append(f"{item.name} is missing")
            continue
        try:
            item.parse(cell, scan.name)
        except UserError:
            reasons.append(f"{item.name} is {cell!r}, which is not a value of it")
    return reasons


def _wrong_range(one: Opened | None, scaling: str) -> list[str]:
    if one is None or one.values is None or scaling != "none":
        return []
    low, high = one.values.percentiles[0], one.values.percentiles[-1]
    # The margin is that of the pipeline: int16 with a slope rounds.
    if low >= -1e-3 and high <= 1 + 1e-3:
        return []
    return [f"intensities from {low:g} to {high:g}, and config.data.scaling 'none' wants [0, 1]"]


def _columns(scan: Scan) -> dict[str, str]:
    """The cells of a scan; without the standard conditions that its table does not know."""
    return {
        name: value
        for name, value in scan.covariates.items()
        if name not in _NOT_COLUMNS and not (name in STANDARD and is_missing(value))
    }


def _several(scans: Sequence[Scan], splits: Mapping[str, str]) -> dict[str, list[str]]:
    """Participants with scans in more than one split."""
    found: dict[str, set[str]] = defaultdict(set)
    for scan in scans:
        if scan.name in splits:
            found[scan.participant_id].add(splits[scan.name])
    return {person: sorted(names) for person, names in found.items() if len(names) > 1}


def _duplicates(seen: Inspection, splits: Mapping[str, str]) -> list[Duplicate]:
    same = [("file", tuple(sorted(group))) for group in same_files(seen.outsides, seen.outputs)]
    read = [one for one in seen.opened if one.voxels_sha256]
    same += [("voxels", _names(group)) for group in groups(read, lambda one: one.voxels_sha256)]
    same += [("source", tuple(sorted(group))) for group in groups(seen.sources, seen.sources.get)]
    # The strongest reason alone is given.
    first = {names: what for what, names in reversed(same)}
    return [
        Duplicate(what, names, tuple(sorted({splits[name] for name in names if name in splits})))
        for names, what in sorted(first.items())
    ]


def _names(group: Iterable[Opened]) -> tuple[str, ...]:
    return tuple(sorted(one.name for one in group))


def _count(values: Iterable[str]) -> dict[str, int]:
    """How often each value is there, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))


def _measured(seen: Inspection, scans: int, seconds: float) -> dict[str, float | int]:
    """Times on this machine, and the memory of this process at its highest."""
    rate = len(seen.opened) / seen.seconds if seen.opened and seen.seconds > 0 else 0.0
    return {
        "seconds": round(seconds, 2),
        "peak_memory_bytes": _peak_memory_bytes(),
        "scans_read_per_second": float(f"{rate:.3g}"),
        "seconds_to_read_all": round(scans / rate, 1) if rate else 0.0,
    }


def _peak_memory_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux begins with the memory of the process that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
