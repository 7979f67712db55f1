"""The fingerprint as one HTML page (templates/fingerprint.html): its images and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from brainldm import __version__
from brainldm.fingerprint import plots
from brainldm.fingerprint.text import amount, headline, measured_text, planned, range_of, time_of, values_of
from brainldm.reports import html

VALUES_SHOWN = 1000
"""Different values of one property of the geometry on the page; the JSON has all."""


def render(figures: Mapping[str, Any]) -> str:
    """The page as text. `figures` is `Fingerprint.as_dict()`."""
    return html.render(
        "fingerprint.html",
        figures=figures,
        version=__version__,
        headline=headline(figures),
        measured=measured_text(figures),
        planned=planned(figures),
        images={
            "columns": _picture(plots.columns(figures["columns"])),
            "intensities": _picture(plots.intensities(figures["scans"])) if figures["intensity"] else None,
        },
        findings=[(one["level"], one["text"]) for one in figures["findings"]],
        rejected=[tuple(one[key] for key in ("name", "stage", "reason", "path")) for one in figures["rejected"]],
        duplicates=[
            (f"same {one['what']}", ", ".join(one["scans"]), ", ".join(one["splits"])) for one in figures["duplicates"]
        ],
        splits=list(figures["splits"].items()),
        in_several_splits=[(person, ", ".join(splits)) for person, splits in figures["in_several_splits"].items()],
        columns=[
            (
                column["name"] + (" (condition)" if column["condition"] else ""),
                *(column[key] for key in ("n", "missing", "odd")),
                values_of(column),
                range_of(column),
            )
            for column in figures["columns"]
        ],
        geometry=[
            (what, value, count)
            for what, counts in figures["geometry"].items()
            for value, count in list(counts.items())[:VALUES_SHOWN]
        ],
        intensity=[
            (name, *(f"{row[what]:.4g}" for what in ("minimum", "median", "maximum")))
            for name, row in figures["intensity"].items()
        ],
        costs=[
            (cost["stage"], amount(cost["disk_bytes"]), amount(cost["memory_bytes"]), time_of(cost), cost["how"])
            for cost in figures["costs"]
        ],
    )


def _picture(image: Image.Image | None) -> html.Picture | None:
    return None if image is None else html.picture(image)
