"""Pictures of the report: scatter plots, and brains chosen so that the eye compares like with like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from brainldm.datasets.covariates import person_in_words
from brainldm.datasets.scans import Scan
from brainldm.evaluation.datasets import Scans
from brainldm.evaluation.measures.volumetry import Measurement
from brainldm.reports.mosaics import mosaic
from brainldm.reports.plots import BLUE, GREY, INK, figure_to_image, new_figure, plain_axes

SHOWN = 6


def scatter(
    title: str,
    made: tuple[np.ndarray, np.ndarray],
    people: tuple[np.ndarray, np.ndarray],
    unit: str = "mL",
) -> Image.Image:
    """Requested (x) against measured (y) values of generated brains, labels against measured of real ones."""
    figure = new_figure(5.2, 5.0, dpi=150)
    axes = figure.add_subplot()
    everything = np.concatenate([np.ravel(part) for part in (*made, *people)])
    everything = everything[np.isfinite(everything)]
    low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
    margin = 0.05 * max(high - low, 1e-6)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, "--", color=INK, linewidth=1, label="identity")
    axes.scatter(*people, s=22, facecolors="none", edgecolors=GREY, linewidths=1, label=_counted("real", people))
    axes.scatter(*made, s=20, color=BLUE, alpha=0.8, linewidths=0, label=_counted("generated", made))
    axes.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        title=title,
        xlabel=f"requested; label of real brains ({unit})",
        ylabel=f"measured on the image ({unit})",
    )
    plain_axes(axes)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=9)
    return figure_to_image(figure)


def spectra(sharpness: Mapping[str, Any]) -> Image.Image:
    """Mean radial power spectra of generated and of real brains, on a logarithmic scale."""
    figure = new_figure(7.2, 4.0, dpi=120)
    axes = figure.add_subplot()
    for which, words, colour in (("real", "real", GREY), ("synthetic", "generated", BLUE)):
        axes.semilogy(sharpness[which]["frequencies_per_mm"], sharpness[which]["power"], color=colour, label=words)
    axes.set(xlabel="frequency, cycles per mm", ylabel="mean power", title="Radial power spectrum")
    axes.legend(frameon=False)
    plain_axes(axes)
    return figure_to_image(figure)


def brains(made: Scans, people: Scans, measured: dict[str, list[Measurement]]) -> Image.Image:
    """Generated brains from small to large ventricles, and under each the real one with the nearest conditions."""
    shown = spread(_order(made), SHOWN)
    beside = nearest([made.records[i] for i in shown], people.records)
    return mosaic(
        [
            (
                f"Generated ({len(shown)} of {len(made)}, from small to large requested ventricles)",
                [made[i] for i in shown],
            ),
            ("Real, the nearest in age, sex and volumes to the brain above", [people[j] for j in beside]),
        ],
        [
            [caption(made.records[i], measured["synthetic"][i]) for i in shown],
            [caption(people.records[j], measured["real"][j]) for j in beside],
        ],
        columns=SHOWN,
    )


def reconstructed(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Real brains over their reconstructions by the autoencoder."""
    shown = list(pairs)[:SHOWN]
    rows = [("Real", [a for a, _ in shown]), ("Reconstructed by the autoencoder", [b for _, b in shown])]
    return mosaic(rows, columns=SHOWN)


def swept(sweep: tuple, figures: dict) -> Image.Image:
    """The brains of a sweep, with what was asked and, for a volume, what was measured."""
    name, values, volumes = sweep
    found = figures.get(f"measured_{name}") or [None] * len(values)
    texts = [
        f"asked {_short(value)}" + ("" if m is None else f", measured {m:.0f}")
        for value, m in zip(values, found, strict=True)
    ]
    title = f"{name} from {_short(values[0])} to {_short(values[-1])}, every other condition and the noise fixed"
    return mosaic([(title, volumes)], [texts], columns=max(len(values), 1))


def caption(record: Scan, found: Measurement) -> str:
    """Such as "70 y F, 40 mL, got 38": what the dataset says, and the ventricles measured."""
    said = record.covariates
    who = person_in_words(said)
    parts = [who] if who else []
    if "ventricles_ml" in said:
        got = f"{found.ventricles_ml:.0f}" if np.isfinite(found.ventricles_ml) else "no brain"
        parts.append(f"{said['ventricles_ml']:.0f} mL, got {got}")
    return ", ".join(parts)


def spread(order: Sequence[int], count: int) -> list[int]:
    """`count` items of a sorted list at even distances, both ends included."""
    if not len(order):
        return []
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [int(order[p]) for p in places]


def nearest(wanted: Sequence[Scan], among: Sequence[Scan]) -> list[int]:
    """For each record the index of the one `among` whose conditions are nearest, without repetition if possible.

    Distances are in standard deviations of each condition; another sex counts as two.
    """
    names = [n for n in ("age", "ventricles_ml", "brain_ml") if all(n in r.covariates for r in (*wanted, *among))]
    table = np.array([[r.covariates[n] for n in names] for r in among], float).reshape(len(among), len(names))
    scale = np.maximum(table.std(0), 1e-6)
    free, chosen = list(range(len(among))), []
    for record in wanted:
        free = free or list(range(len(among)))
        here = np.array([record.covariates[n] for n in names], float)
        distance = np.sqrt((((table[free] - here) / scale) ** 2).sum(1))
        other_sex = [among[j].covariates.get("sex") != record.covariates.get("sex") for j in free]
        chosen.append(free.pop(int(np.argmin(distance + 2.0 * np.array(other_sex)))))
    return chosen


def _order(scans: Scans) -> list[int]:
    values = scans.values("ventricles_ml")
    if not np.isfinite(values).any():
        values = scans.values("brain_ml")
    return np.argsort(values, kind="stable").tolist()


def _counted(word: str, pair: tuple[np.ndarray, np.ndarray]) -> str:
    return f"{word} (n = {int((np.isfinite(pair[0]) & np.isfinite(pair[1])).sum())})"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
