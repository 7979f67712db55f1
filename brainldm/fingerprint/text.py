"""The fingerprint as plain lines for a terminal: what needs an eye first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brainldm.reports.text import text_table
from brainldm.runtime.format import format_bytes, format_count, format_duration, format_names, format_shape

REJECTED_SHOWN = 20
COUNTS_SHOWN = 6


def lines(figures: Mapping[str, Any]) -> list[str]:
    """`figures` is `Fingerprint.as_dict()`."""
    parts = [_head(figures), _findings(figures), _rejected(figures), _columns(figures), _splits(figures)]
    parts += [_geometry(figures), _intensity(figures), _duplicates(figures), _costs(figures), _measured(figures)]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def headline(figures: Mapping[str, Any]) -> str:
    """Such as "58 of 60 scans of 60 participants can be trained on (prepared, 40x56x40 voxels of 4 mm)"."""
    counts, grid = figures["counts"], figures["grid"]
    size = f"{format_shape(grid['shape'])} voxels of {grid['spacing_mm']:g} mm"
    prepared = figures["kind"] == "prepared"
    what = (
        f"can be trained on (prepared, {size})" if prepared else "can be read (raw, to go through `brainldm prepare`)"
    )
    sessions = f" in {format_count(counts['sessions'], 'session')}" if counts["sessions"] else ""
    people = format_count(counts["participants"], "participant")
    return f"{counts['usable']} of {counts['scans']} scans of {people}{sessions} {what}"


def _head(figures: Mapping[str, Any]) -> list[str]:
    return [f"{figures['source']}: {headline(figures)}, {format_bytes(figures['counts']['bytes'])} on disk."]


def _findings(figures: Mapping[str, Any]) -> list[str]:
    if not figures["findings"]:
        return ["Nothing wrong was found."]
    return ["Findings, the worst first", *(f"  {one['level']:8}{one['text']}" for one in figures["findings"])]


def _rejected(figures: Mapping[str, Any]) -> list[str]:
    rejected = figures["rejected"]
    if not rejected:
        return []
    shown = [f"  {one['stage']:10}{one['name']}: {one['reason']}" for one in rejected[:REJECTED_SHOWN]]
    rest = len(rejected) - REJECTED_SHOWN
    more = [f"  and {rest} more; --json and --html name them"] if rest > 0 else []
    return [f"Would be rejected ({len(rejected)})", *shown, *more]


def _columns(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            column["name"] + (" *" if column["condition"] else ""),
            str(column["n"]),
            str(column["missing"]) + (f" + {column['odd']} odd" if column["odd"] else ""),
            values_of(column),
            range_of(column),
        )
        for column in figures["columns"]
    ]
    head = ("column", "n", "missing", "values", "outside the range")
    return ["Columns (* a condition of the model)", *text_table(rows, head)]


def values_of(column: Mapping[str, Any]) -> str:
    """The values of one column in a few words."""
    if column["kind"] == "numbers":
        unit = f" {column['unit']}" if column["unit"] else ""
        return f"{column['minimum']:g} to {column['maximum']:g}{unit}, median {column['median']:g}"
    if column["kind"] == "levels":
        return ", ".join(f"{level} {count}" for level, count in column["levels"].items())
    return {"text": "text", "empty": "none"}[column["kind"]]


def range_of(column: Mapping[str, Any]) -> str:
    """The fraction of a condition's values outside its range."""
    if column["outside"] is None:
        return ""
    return f"{column['outside']:.1%} (range {column['range'][0]:g} to {column['range'][1]:g})"


def _splits(figures: Mapping[str, Any]) -> list[str]:
    if not figures["splits"]:
        return []
    return ["Splits: " + ", ".join(f"{name} {count}" for name, count in figures["splits"].items())]


def _geometry(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for what, counts in figures["geometry"].items():
        rows.append((what, format_names([f"{value} ({count})" for value, count in counts.items()], COUNTS_SHOWN)))
    return ["Geometry, as stored", *text_table(rows)]


def _intensity(figures: Mapping[str, Any]) -> list[str]:
    spread = figures["intensity"]
    if not spread:
        return []
    rows = [(what, *(f"{row[what]:.4g}" for row in spread.values())) for what in ("minimum", "median", "maximum")]
    return [
        f"Intensities above the background: percentiles of each of {len(figures['scans'])} scans, over scans",
        *text_table(rows, ("", *spread)),
    ]


def _duplicates(figures: Mapping[str, Any]) -> list[str]:
    groups = figures["duplicates"]
    if not groups:
        return []
    shown = [
        f"  same {one['what']}: {format_names(one['scans'], COUNTS_SHOWN)}"
        + (f" (splits {', '.join(one['splits'])})" if len(one["splits"]) > 1 else "")
        for one in groups[:REJECTED_SHOWN]
    ]
    rest = len(groups) - REJECTED_SHOWN
    return [f"Duplicates ({format_count(len(groups), 'group')})", *shown, *([f"  and {rest} more"] if rest > 0 else [])]


def _costs(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        (cost["stage"], amount(cost["disk_bytes"]), amount(cost["memory_bytes"]), time_of(cost))
        for cost in figures["costs"]
    ]
    head = ("stage", "writes", "data in memory", "time")
    scans = format_count(planned(figures), "scan")
    return [f"Expected, for {scans} and without the networks", *text_table(rows, head)]


def planned(figures: Mapping[str, Any]) -> int:
    """The number of scans that the costs are for."""
    return figures["counts"]["usable"] or figures["counts"]["scans"]


def time_of(cost: Mapping[str, Any]) -> str:
    """The rough time of a stage; "-" where there is none."""
    return "-" if cost["seconds"] is None else f"about {format_duration(cost['seconds'])}"


def amount(size: int) -> str:
    """Bytes for a person; "-" for none."""
    return format_bytes(size) if size else "-"


def _measured(figures: Mapping[str, Any]) -> list[str]:
    return [measured_text(figures)]


def measured_text(figures: Mapping[str, Any]) -> str:
    """What the check itself measured, in a sentence or two."""
    measured = figures["measured"]
    text = f"Checked in {measured['seconds']:.1f} s with {format_bytes(measured['peak_memory_bytes'])} of memory."
    if measured["scans_read_per_second"]:
        text += (
            f" Reading goes at {measured['scans_read_per_second']:g} scans a second here, so reading all "
            f"takes {format_duration(measured['seconds_to_read_all'])}."
        )
    return text + " Time and memory of the networks depend on the device: `brainldm plan` works them out for one."
