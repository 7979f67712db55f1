"""The evaluation report as one HTML page (templates/evaluation.html): its images and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainldm.evaluation import plots
from brainldm.evaluation.datasets import Scans
from brainldm.evaluation.measures.volumetry import Measurement
from brainldm.reports import html
from brainldm.runtime.format import format_interval, format_number

_NAMES = {"ventricles_ml": "Ventricles", "brain_ml": "Brain"}
_TITLES = {"ventricles_ml": "Lateral ventricles", "brain_ml": "Brain, normalised for head size"}
_SETS = {"synthetic": "generated: requested against measured", "real": "real: label against measured"}
_WORDS = {"synthetic": "generated", "real": "real"}


def render(
    figures: Mapping[str, Any],
    scans: Mapping[str, Scans],
    measured: Mapping[str, Sequence[Measurement]],
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray]] | None,
    sweep: tuple[str, Sequence[float | str], Sequence[np.ndarray]] | None,
) -> str:
    """The page as text. `figures` as `evaluate` returns them; the rest is what the images are made of."""
    images = {
        "brains": html.picture(plots.brains(scans["synthetic"], scans["real"], measured)),
        "reconstructions": html.picture(plots.reconstructed(reconstructions)) if reconstructions else None,
        "sweep": html.picture(plots.swept(sweep, figures["sweep"])) if sweep is not None else None,
        "scatter": {title: html.picture(_scatter(name, title, scans, measured)) for name, title in _TITLES.items()},
    }
    return html.render(
        "evaluation.html",
        figures=figures,
        images=images,
        agreement=_agreement(figures),
        conditions=[
            (name, words.get("synthetic", ""), words.get("real", "not in its table"))
            for name, words in figures["conditions"].items()
        ],
        variety=_variety(figures),
    )


def _scatter(name: str, title: str, scans: Mapping[str, Scans], measured: Mapping[str, Sequence[Measurement]]):
    pairs = {
        which: (scans[which].values(name), np.array([getattr(m, name) for m in measured[which]])) for which in _SETS
    }
    return plots.scatter(title, pairs["synthetic"], pairs["real"])


def _agreement(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, title in _NAMES.items():
        for which, words in _SETS.items():
            found = figures["agreement"][name][which]
            cells = (format_interval(**found[key]) for key in ("r", "slope", "intercept", "mae"))
            rows.append((title, words, *cells, str(found["n"]), str(found["missing"])))
    return rows


def _variety(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for which, words in _WORDS.items():
        found = figures["ms_ssim"][which]
        means = (format_number(found[key], ".4f") for key in ("mean", "sd"))
        rows.append((words, *means, *(str(found[key]) for key in ("pairs", "volumes", "scales"))))
    return rows
