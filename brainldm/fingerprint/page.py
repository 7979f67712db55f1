"""The fingerprint as one HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from brainldm import __version__
from brainldm.fingerprint import plots
from brainldm.fingerprint.data_costs import readable_bytes
from brainldm.fingerprint.findings import counted
from brainldm.fingerprint.text import amount, headline, measured_text, planned, range_of, time_of, values_of
from brainldm.reports.html import card, document, picture, section, table

ROWS = 1000
"""Rejected scans and duplicates on the page; the JSON has all."""


def render(figures: Mapping[str, Any]) -> str:
    """The page as text. `figures` is `Fingerprint.as_dict()`."""
    parts = [_head(figures), _cards(figures), section("Findings, the worst first", _findings(figures))]
    if figures["rejected"]:
        parts.append(section("What would be rejected", _rejected(figures)))
    if figures["duplicates"] or figures["splits"]:
        parts.append(section("Duplicates and splits", _duplicates(figures)))
    parts.append(section("Columns", _columns(figures)))
    parts.append(section("Geometry", _geometry(figures)))
    if figures["intensity"]:
        parts.append(section("Intensities", _intensity(figures)))
    parts.append(section("Expected disk and memory", _costs(figures)))
    parts.append(section("How this was made", _method(figures)))
    return document("Fingerprint of a dataset", "\n".join(parts))


def _head(figures: Mapping[str, Any]) -> str:
    return (
        "<h1>What is in this dataset, and what of it can be used?</h1>"
        f'<p class="lead">{html.escape(figures["source"])}. {html.escape(headline(figures))}. '
        f"brainldm {__version__}.</p>"
    )


def _cards(figures: Mapping[str, Any]) -> str:
    counts, measured = figures["counts"], figures["measured"]
    word = "fit for training" if figures["kind"] == "prepared" else "readable"
    errors = sum(one["level"] == "error" for one in figures["findings"])
    warnings = sum(one["level"] == "warning" for one in figures["findings"])
    rejected = f"{counts['rejected']} would be rejected." if counts["rejected"] else "None would be rejected."
    return (
        '<div class="cards">'
        + card(
            f"Scans {word}",
            f'{counts["usable"]} <span class="beside">of {counts["scans"]}</span>',
            f"{rejected} {counts['participants']} participants, {counts['sessions']} named sessions.",
        )
        + card("Findings", f'{errors} <span class="beside">errors, {warnings} warnings</span>', "See below.")
        + card(
            "On disk",
            readable_bytes(counts["bytes"]),
            f"{measured['scans_read_per_second']:g} scans a second were read and unpacked here.",
        )
        + "</div>"
    )


def _findings(figures: Mapping[str, Any]) -> str:
    if not figures["findings"]:
        return "<p>Nothing wrong was found.</p>"
    return table(("Level", "Finding"), [(one["level"], html.escape(one["text"])) for one in figures["findings"]])


def _rejected(figures: Mapping[str, Any]) -> str:
    rejected = figures["rejected"]
    rows = [tuple(html.escape(one[key]) for key in ("name", "stage", "reason", "path")) for one in rejected[:ROWS]]
    return table(("Scan", "Stage", "Reason", "File"), rows) + _rest(len(rejected))


def _rest(count: int) -> str:
    return f'<p class="small">The first {ROWS} of {count}; the JSON has all.</p>' if count > ROWS else ""


def _duplicates(figures: Mapping[str, Any]) -> str:
    parts = []
    if figures["duplicates"]:
        rows = [
            (f"same {one['what']}", html.escape(", ".join(one["scans"])), html.escape(", ".join(one["splits"])))
            for one in figures["duplicates"][:ROWS]
        ]
        parts.append(table(("Why", "Scans", "Splits"), rows) + _rest(len(figures["duplicates"])))
    else:
        parts.append("<p>No duplicates were found.</p>")
    if figures["splits"]:
        rows = [(html.escape(name), str(count)) for name, count in figures["splits"].items()]
        parts.append(table(("Split", "Scans"), rows))
    if figures["in_several_splits"]:
        people = list(figures["in_several_splits"].items())
        rows = [(html.escape(person), html.escape(", ".join(sides))) for person, sides in people[:ROWS]]
        parts.append(table(("Participant in more than one split", "Splits"), rows) + _rest(len(people)))
    return "".join(parts)


def _columns(figures: Mapping[str, Any]) -> str:
    image = plots.columns(figures["columns"])
    shown = (
        picture(
            image,
            "Histograms of the columns",
            "Shaded: the range of the model's condition, which is coded 0 to 1.",
            dark=False,
        )
        if image
        else ""
    )
    rows = [
        (
            html.escape(column["name"]) + (" (condition)" if column["condition"] else ""),
            str(column["n"]),
            str(column["missing"]),
            str(column["odd"]),
            html.escape(values_of(column)),
            range_of(column),
        )
        for column in figures["columns"]
    ]
    return shown + table(("Column", "n", "Missing", "Odd", "Values", "Outside the range"), rows)


def _geometry(figures: Mapping[str, Any]) -> str:
    rows = [
        (html.escape(what), html.escape(value), str(count))
        for what, counts in figures["geometry"].items()
        for value, count in list(counts.items())[:ROWS]
    ]
    return table(("", "As stored", "Scans"), rows)


def _intensity(figures: Mapping[str, Any]) -> str:
    image = plots.intensities(figures["scans"])
    spread = figures["intensity"]
    rows = [(name, *(f"{row[what]:.4g}" for what in ("minimum", "median", "maximum"))) for name, row in spread.items()]
    return picture(
        image,
        "Intensity percentiles of the scans",
        "Every scan that was read, one column each: percentiles of its voxels above the smallest value. Steps or "
        "lonely columns are scans on another scale than the rest.",
        dark=False,
    ) + table(("Percentile of a scan", "Smallest over scans", "Median", "Largest"), rows)


def _costs(figures: Mapping[str, Any]) -> str:
    rows = [
        (
            html.escape(cost["stage"]),
            amount(cost["disk_bytes"]),
            amount(cost["memory_bytes"]),
            time_of(cost),
            html.escape(cost["how"]),
        )
        for cost in figures["costs"]
    ]
    note = (
        f"<p>For {counted(planned(figures), 'scan')}. Networks, gradients and optimizers are not in it: "
        "<code>brainldm plan</code> works them out for a device.</p>"
    )
    return note + table(("Stage", "Writes", "Data in memory", "Time", "How"), rows)


def _method(figures: Mapping[str, Any]) -> str:
    counts = figures["counts"]
    return (
        f"<p>{html.escape(measured_text(figures))}</p>"
        f"<p>Of {counts['scans']} files the header, the length and two pieces were looked at; {counts['read']} were "
        "read in full, checksums included. Files of one size with the same pieces were compared by SHA-256, scans that "
        "were read also by a hash of their voxels.</p>"
    )
