"""The evaluation report as one HTML page (templates/evaluation.html): its images and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainldm.datasets.covariates import person_in_words
from brainldm.datasets.scans import Scan
from brainldm.evaluation import plots
from brainldm.evaluation.datasets import Scans
from brainldm.evaluation.measures.volumetry import Measurement
from brainldm.reports import html
from brainldm.reports.viewer import Viewer, alternating, make_viewer
from brainldm.runtime.format import format_interval, format_number
from brainldm.volumes.nifti import volume_bytes

_NAMES = {"ventricles_ml": "Ventricles", "brain_ml": "Brain"}
_TITLES = {"ventricles_ml": "Lateral ventricles", "brain_ml": "Brain, normalised for head size"}
_SETS = {"synthetic": "generated: requested against measured", "real": "real: label against measured"}
_SHOWN_AS = {"synthetic": "generated", "real": "real"}
VIEWED = 6
"""Brains of each kind in the viewer."""
_WORDS = {"synthetic": "generated", "real": "real"}
_SIMILARITIES = {
    "ms_ssim": "MS-SSIM",
    "gradient_ssim": "4-G-R-SSIM",
    "gradient_ssim_multi_scale": "4-G-R-SSIM, multi-scale",
}
_PAPER = (
    ("LSGAN", "0.0231", "0.9997", "0.9969"),
    ("VAE-GAN", "0.1576", "0.9671", "0.8719"),
    ("LDM", "0.0076", "0.6555", "0.3883"),
    ("LDM + DDIM", "0.0080", "0.6704", "0.3957"),
    ("real images", "0.0005", "0.6536", "0.3909"),
)
"""Table 1 of Pinaya et al. 2022: FID on Med3D features, MS-SSIM, 4-G-R-SSIM over 1000 pairs of UK Biobank's grid."""


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
        "spectrum": html.picture(plots.spectra(figures["sharpness"])),
        "scatter": {title: html.picture(_scatter(name, title, scans, measured)) for name, title in _TITLES.items()},
    }
    return html.render(
        "evaluation.html",
        figures=figures,
        images=images,
        viewer=_viewer(scans, reconstructions),
        agreement=_agreement(figures),
        groups=_groups(figures),
        conditions=[
            (name, words.get("synthetic", ""), words.get("real", "not in its table"))
            for name, words in figures["conditions"].items()
        ],
        variety=_variety(figures),
        papers_table=_papers_table(figures),
        features=_features(figures),
        morphometry=_morphometry(figures),
        ages=_ages(figures),
    )


def _viewer(
    scans: Mapping[str, Scans], reconstructions: Sequence[tuple[np.ndarray, np.ndarray]] | None
) -> Viewer | None:
    """Generated and real brains in turn, and reconstructions, as many as a page holds."""
    grid = scans["synthetic"].grid
    groups = [
        [(_SHOWN_AS[which], _label(one.records[k]), one[k]) for k in range(min(VIEWED, len(one)))]
        for which, one in scans.items()
    ]
    pairs = list(enumerate(reconstructions or (), start=1))[:VIEWED]
    groups.append([("reconstructed", f"reconstruction of held-out scan {k}", output) for k, (_, output) in pairs])
    groups.append([("held out", f"held-out scan {k}", image) for k, (image, _) in pairs])
    return make_viewer(
        (group, label, volume_bytes(volume.reshape(grid.shape), grid.affine, bits=8))
        for group, label, volume in alternating(groups)
    )


def _label(scan: Scan) -> str:
    """The scan's name, age, sex and ventricles, as its table has them."""
    row = scan.covariates
    volume = f"ventricles {row['ventricles_ml']:.0f} mL" if "ventricles_ml" in row else ""
    return ", ".join(filter(None, (scan.name, person_in_words(row), volume)))


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


def _ages(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a brain-age network was worth before, and what it tells here."""
    if not figures["brain_age"]:
        return []
    held_out, agreement = figures["brain_age"]["held_out"], figures["brain_age"]["agreement"]
    known = (format_number(held_out["r"]), "", "", format_number(held_out["mae"]), f"{held_out['n']:g}", "")
    rows = [("scans that it was not trained on, when it was trained", *known)]
    for which, words in (("real", "real: label against told"), ("synthetic", "generated: requested against told")):
        found = agreement[which]
        cells = (format_interval(**found[key]) for key in ("r", "slope", "intercept", "mae"))
        rows.append((words, *cells, str(found["n"]), str(found["missing"])))
    return rows


def _groups(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each volume and group of generated brains."""
    return [
        (_NAMES[name], group, *(format_interval(**found[key]) for key in ("r", "slope", "mae")), str(found["n"]))
        for name, groups in figures["agreement_in_groups"].items()
        for group, found in groups.items()
    ]


def _papers_table(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of this evaluation, and below them the paper's own as quotations."""
    rows, kind = [], figures["datasets"]["synthetic"].get("model_kind")
    made = f"generated, here, by {kind}" if kind else "generated, here"
    for which, words in (("synthetic", made), ("real", "real against real, here")):
        similar = (
            format_interval(*(figures[measure][which][key] for key in ("mean", "low", "high")))
            for measure in ("ms_ssim", "gradient_ssim")
        )
        rows.append((words, format_number(figures["features"][which]["frechet"], ".4g"), *similar))
    return rows + [(f"{name}, the paper's", *cells) for name, *cells in _PAPER]


def _features(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for which, words in (("synthetic", "generated against real"), ("real", "real against real (two halves)")):
        found = figures["features"][which]
        shares = found["manifolds"] or dict.fromkeys(("precision", "recall", "density", "coverage"))
        rows.append(
            (
                words,
                format_number(found["frechet"], ".4g") + ("" if found["determined"] else " (too few brains)"),
                format_number(found["frechet_extrapolated"], ".4g"),
                format_interval(**found["kernel"]) if found["kernel"] else "not determined",
                *(format_number(shares[name], ".2f") for name in ("precision", "recall", "density", "coverage")),
                f"{found['n'][0]} and {found['n'][1]}",
            )
        )
    return rows


def _morphometry(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            _NAMES.get(name, name),
            *(f"{mean:.3g}" for mean in found["mean"]),
            format_number(found["wasserstein"]),
            format_number(found["standardised"]),
            f"{found['n'][0]} and {found['n'][1]}",
        )
        for name, found in figures["morphometry"].items()
    ]


def _variety(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for measure, name in _SIMILARITIES.items():
        for which, words in _WORDS.items():
            found = figures[measure][which]
            mean = format_interval(*(found[key] for key in ("mean", "low", "high")))
            counts = (str(found[key]) for key in ("pairs", "volumes", "scales"))
            rows.append((f"{name}, {words}", mean, format_number(found["sd"], ".4f"), *counts))
    return rows
