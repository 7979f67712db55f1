"""The page of a generated dataset: counts, what was asked, brains to look at, and those unlike the others."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from brainldm.datasets.covariates import person_in_words
from brainldm.generation.job import Job
from brainldm.generation.manifest import Entry, read_brain
from brainldm.reports import html
from brainldm.reports.mosaics import mosaic
from brainldm.reports.plots import BLUE, figure_to_image, new_figure, plain_axes
from brainldm.runtime.files import write_atomically
from brainldm.weights.parameter_files import KINDS

PAGE = "dataset.html"
SHOWN = 16
"""Brains in each mosaic."""
LIMIT = 6.0
"""Robust standard deviations from the median from which on a brain is an outlier."""
_NORMAL = 1.4826
"""Median absolute deviation to standard deviation, of normal numbers."""
_FLATTEST = 1e-3
"""The least deviation: intensities that all but agree make no outliers."""


def write_dataset_page(out: Path, job: Job, entries: Sequence[Entry], sampler: str) -> None:
    """Write dataset.html for finished brains in the order of their indices. The bytes depend on these alone."""
    far = distances(entries)
    order = sorted(range(len(entries)), key=lambda k: -far[k])
    outliers = [(entries[k], far[k]) for k in order if far[k] > LIMIT]
    places = np.linspace(0, len(entries) - 1, min(SHOWN, len(entries))).round().astype(int).tolist()
    first = read_brain(out, entries[0])
    conditions = _conditions(job, entries)
    means = [entry["mean"] for entry in entries]
    page = html.render(
        "dataset.html",
        kind=KINDS[job.kind],
        model=job.model_sha256[:12],
        sampler=sampler,
        seed=job.seed,
        shape=first.data.shape,
        spacing=float(first.spacing_mm[0]),
        count=len(entries),
        shown=len(places),
        bytes=sum(entry["bytes"] for entry in entries),
        extrapolated=sum(bool(entry["extrapolated"]) for entry in entries),
        intensity={"mean": statistics.fmean(means), "low": min(means), "high": max(means)},
        limit=LIMIT,
        conditions=conditions,
        outliers=[(e["id"], f"{e['mean']:.3f}", f"{e['p99']:.3f}", f"{distance:.1f}") for e, distance in outliers],
        images={
            "brains": _brains(out, [entries[k] for k in places]),
            "outliers": _brains(out, [entry for entry, _ in outliers[:SHOWN]]) if outliers else None,
            "conditions": _histograms(job, entries) if conditions else None,
        },
    )
    write_atomically(out / PAGE, page.encode())


def distances(entries: Sequence[Entry]) -> list[float]:
    """How far each brain is from the median, in robust standard deviations: the larger one of mean and p99."""
    found = []
    for name in ("mean", "p99"):
        values = np.array([entry[name] for entry in entries], np.float64)
        off = np.abs(values - np.median(values))
        found.append(off / max(_NORMAL * float(np.median(off)), _FLATTEST))
    return np.maximum(*found).tolist()


def _brains(out: Path, entries: Sequence[Entry]) -> html.Picture:
    volumes = [read_brain(out, entry).data for entry in entries]
    return html.picture(mosaic([("", volumes)], [[_caption(entry) for entry in entries]]))


def _caption(entry: Entry) -> str:
    row = entry["conditions"]
    volume = f"{row['ventricles_ml']:.0f} mL" if "ventricles_ml" in row else ""
    return " ".join(filter(None, (entry["id"], person_in_words(row), volume)))


def _values(entries: Sequence[Entry], name: str) -> list[float | str]:
    return [entry["conditions"][name] for entry in entries if name in entry["conditions"]]


def _conditions(job: Job, entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """A row for each condition: of numbers the range and the median, of levels the shares."""
    rows = []
    for name, described in job.about["columns"].items():
        values = _values(entries, name)
        if not values:
            rows.append((name, described.get("Units", ""), "left out", "", ""))
        elif "Levels" in described:
            shares = ", ".join(f"{level} {count}" for level, count in sorted(Counter(values).items()))
            rows.append((name, "", shares, "", ""))
        else:
            low, middle, high = np.percentile(values, [0, 50, 100])
            rows.append((name, described.get("Units", ""), f"{low:g}", f"{middle:g}", f"{high:g}"))
    return rows


def _histograms(job: Job, entries: Sequence[Entry]) -> html.Picture | None:
    shown = {name: values for name in job.about["columns"] if (values := _values(entries, name))}
    if not shown:
        return None
    figure = new_figure(min(3 * len(shown), 12), 2.6)
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        described = job.about["columns"][name]
        if "Levels" in described:
            counts = Counter(values)
            axes.bar(list(described["Levels"]), [counts[level] for level in described["Levels"]], color=BLUE)
        else:
            axes.hist(values, bins=min(30, max(5, len(values) // 5)), color=BLUE)
        axes.set_title(f"{name}, {described['Units']}" if "Units" in described else name, fontsize=9)
        axes.tick_params(labelsize=8)
        plain_axes(axes)
    image: Image.Image = figure_to_image(figure)
    return html.picture(image)
