"""The page to look at before training: what was excluded and why, and brains in the template's contour, worst first."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from brainldm.datasets.scans import Excluded, Scan
from brainldm.preparation.records import OutputPaths
from brainldm.preparation.scan import HIGH_PERCENTILE, PrepareOptions, brain_mask
from brainldm.reports import mosaics
from brainldm.reports.html import card, document, picture, section, table
from brainldm.runtime.files import write_atomically
from brainldm.volumes.nifti import read_volume

WORST, SAMPLED, QUARANTINED, ROWS = 24, 12, 12, 200
"""Brains shown (the rest are in quality.tsv) and rows of the table of excluded scans (the rest in excluded.tsv)."""

_COLUMNS = 6
_CONTOUR = (255, 140, 26)
_SHOWN_PX = 224
_GAP = 8
_COLOURS = {"stripped": "#1f5fa8", "whole": "#b7791f"}

Kept = Sequence[tuple[Scan, dict[str, Any]]]


def write_quality_page(
    out: Path, kept: Kept, refused: Kept, excluded: Sequence[Excluded], options: PrepareOptions
) -> None:
    """Write `out`/qc.html. `kept` and `refused` are scans with their records; `excluded` all that is left out.

    The bytes depend on the arguments and the images alone.
    """
    worst_first = sorted(kept, key=lambda item: (_margin(item[1], options), item[0].name))
    worst, others = worst_first[:WORST], sorted(worst_first[WORST:], key=lambda item: item[0].name)
    places = np.linspace(0, len(others) - 1, min(SAMPLED, len(others))).round().astype(int)
    sampled = [others[i] for i in dict.fromkeys(places.tolist())]
    parts = [_head(kept, excluded, options)]
    if excluded:
        parts.append(section("Left out", _excluded_table(excluded)))
    mask = brain_mask(options.grid)
    if worst:
        title = "Prepared scans, the worst fit first" if others else "All prepared scans, the worst fit first"
        parts.append(section(title, _brains([(s, r, OutputPaths(out, s).image) for s, r in worst], mask, _READ_AS)))
    if sampled:
        text = f"{len(sampled)} of the other {len(others)}, at even distances in the order of their names."
        parts.append(
            section(
                "A sample of the rest", _brains([(s, r, OutputPaths(out, s).image) for s, r in sampled], mask, text)
            )
        )
    seen = [(s, r, OutputPaths(out, s).quarantined) for s, r in refused if OutputPaths(out, s).quarantined.exists()]
    if seen:
        text = (
            f"{min(len(seen), QUARANTINED)} of {len(seen)} scans whose registration did not pass. If one looks right, "
            "lower its limit (--min-similarity, --min-overlap) in a new run."
        )
        parts.append(section("Quarantined", _brains(seen[:QUARANTINED], mask, text)))
    if kept:
        parts.append(section("Numbers", _figures(kept, options)))
    page = document("Prepared scans: quality", "\n".join(parts))
    write_atomically(out / "qc.html", page.encode())


_READ_AS = (
    "The orange line is the edge of the template's brain. Sizes are not changed, so a small brain leaves an even rim "
    "inside it; a tilted or shifted one touches on one side. Neurological convention: left is left."
)


def _head(kept: Kept, excluded: Sequence[Excluded], options: PrepareOptions) -> str:
    similar = [record["Registration"]["Similarity"] for _, record in kept]
    overlaps = [record["Registration"]["Overlap"] for _, record in kept]
    whole = sum(not record["SkullStripped"] for _, record in kept)
    total = len(kept) + len(excluded)
    cards = [
        card("Prepared", f'{len(kept)} <span class="beside">of {total}</span>', f"{len(excluded)} left out"),
        card("Similarity with the template", _middle(similar), f"median; lowest {_lowest(similar)}"),
        card("Overlap with its brain (Dice)", _middle(overlaps), f"median; lowest {_lowest(overlaps)}"),
    ]
    notice = ""
    if 0 < whole < len(kept):
        notice = (
            f'<p class="notice">{len(kept) - whole} scans are skull-stripped and {whole} are whole heads. A model '
            "would learn both kinds: strip the heads (--masks, --strip-command) or leave them out.</p>"
        )
    grid = options.target
    shape = " x ".join(map(str, grid.shape))
    return (
        f'<h1>Prepared scans</h1>\n<p class="lead">{shape} voxels of {grid.spacing_mm[0]:g} mm, '
        f"{'taken as registered' if options.registered else 'rigidly registered'} to MNI152, intensities 0 to 1.</p>\n"
        f'<div class="cards">{"".join(cards)}</div>\n{notice}'
    )


def _middle(values: Sequence[float]) -> str:
    return f"{np.median(values):.2f}" if values else "none"


def _lowest(values: Sequence[float]) -> str:
    return f"{min(values):.2f}" if values else "none"


def _margin(record: dict[str, Any], options: PrepareOptions) -> float:
    """How far a scan's quality lies above its limits, so that heads and stripped brains can be sorted together."""
    fit = record["Registration"]
    similarity, overlap = options.limits("stripped" if record["SkullStripped"] else "whole")
    return min(fit["Similarity"] - similarity, fit["Overlap"] - overlap)


def _excluded_table(excluded: Sequence[Excluded]) -> str:
    rows = [[html.escape(text) for text in (entry.name, entry.stage, entry.reason)] for entry in excluded[:ROWS]]
    more = f"<p>{len(excluded) - ROWS} more are in excluded.tsv.</p>" if len(excluded) > ROWS else ""
    return table(["Scan", "Stage", "Reason"], rows) + more


def _brains(items: Sequence[tuple[Scan, dict[str, Any], Path]], mask: np.ndarray, text: str) -> str:
    tiles = []
    for scan, record, path in items:
        fit = record["Registration"]
        tiles.append(
            _tile(read_volume(path).data, mask, scan.name, f"r {fit['Similarity']:.2f}  Dice {fit['Overlap']:.2f}")
        )
    rows = [tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
    width = max(len(row) for row in rows) * (tiles[0].shape[1] + _GAP) + _GAP
    sheet = np.zeros((len(rows) * (tiles[0].shape[0] + _GAP) + _GAP, width), np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = i * (tile.shape[0] + _GAP) + _GAP, j * (tile.shape[1] + _GAP) + _GAP
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    picture_of = Image.fromarray(sheet, mode="P")
    picture_of.putpalette([*np.repeat(np.arange(255), 3).tolist(), *_CONTOUR])
    return picture(picture_of, "Slices of brains with the contour of the template", text)


def _tile(volume: np.ndarray, mask: np.ndarray, *lines: str) -> np.ndarray:
    """Three slices of a brain one above another, uint8 [rows, columns]: grey 0..254, and 255 is the contour."""
    factor = max(1, _SHOWN_PX // max(volume.shape))
    planes = []
    for grey, inside in zip(mosaics.slices(volume), mosaics.slices(mask.astype(np.float32)), strict=True):
        size = (grey.shape[1] * factor, grey.shape[0] * factor)
        shown = Image.fromarray(np.round(np.clip(grey, 0, 1) * 254).astype(np.uint8))
        plane = np.minimum(np.array(shown.resize(size, Image.Resampling.BICUBIC)), 254)
        brain = np.array(
            Image.fromarray(np.round(inside * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        )
        brain = brain > 127
        plane[brain & ~ndimage.binary_erosion(brain)] = 255
        planes.append(plane)
    width, head = max(plane.shape[1] for plane in planes), 17 * len(lines)
    title = Image.new("L", (width, head))
    for number, line in enumerate(lines):
        size = 14
        while size > 8 and ImageFont.load_default(size).getlength(line) > width:
            size -= 1
        place = (width / 2, 17 * number + 1)
        ImageDraw.Draw(title).text(place, line, fill=230, font=ImageFont.load_default(size), anchor="ma")
    rows = [np.minimum(np.array(title), 254)]
    for plane in planes:
        left = (width - plane.shape[1]) // 2
        rows.append(np.pad(plane, [(0, 0), (left, width - plane.shape[1] - left)]))
    return np.concatenate(rows)


def _figures(kept: Kept, options: PrepareOptions) -> str:
    figure = Figure(figsize=(11, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for skull, colour in _COLOURS.items():
        fits = [r["Registration"] for _, r in kept if r["SkullStripped"] == (skull == "stripped")]
        if not fits:
            continue
        label = f"{'skull-stripped' if skull == 'stripped' else 'whole heads'} (n = {len(fits)})"
        x, y = ([fit[name] for fit in fits] for name in ("Similarity", "Overlap"))
        left.scatter(x, y, s=14, color=colour, alpha=0.6, label=label)
        similarity, overlap = options.limits(skull)
        left.axvline(similarity, color=colour, linewidth=0.8, linestyle="--")
        left.axhline(overlap, color=colour, linewidth=0.8, linestyle="--")
    left.set(xlabel="similarity (correlation)", ylabel="overlap (Dice)", title="Registration; dashed: the limits")
    left.legend(frameon=False)
    histograms = np.array([record["IntensityHistogram"] for _, record in kept])
    middles = (np.arange(histograms.shape[1]) + 0.5) / histograms.shape[1]
    odd = np.argsort(-np.abs(histograms - np.median(histograms, axis=0)).sum(1), kind="stable")[:WORST]
    for index in odd:
        right.plot(middles, histograms[index], color="#9a9a9a", linewidth=0.6)
    right.plot(middles, np.median(histograms, axis=0), color="#1f5fa8", linewidth=2, label="median of all scans")
    right.set(xlabel="intensity", ylabel="share of voxels in the brain", title="Intensities; grey: the oddest")
    right.legend(frameon=False)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    caption = f"1 is the {HIGH_PERCENTILE:g}th percentile of each scan inside the template's brain."
    return picture(drawn, "Registration quality and intensity histograms", caption, dark=False)
