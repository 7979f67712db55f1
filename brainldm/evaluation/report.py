"""The evaluation: everything measured on a generated and a real dataset, as figures, tables and one page."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import brainldm
from brainldm.evaluation.brain_age import brain_age, brain_age_lines, require_grid
from brainldm.evaluation.comparisons import feature_distances, morphometry, sharpness, variety
from brainldm.evaluation.datasets import Scans, conditions_in_words, description, is_stand_in, open_datasets
from brainldm.evaluation.feature_networks import feature_network
from brainldm.evaluation.groups import agreement_in_groups
from brainldm.evaluation.measures.head_size import registration_scale
from brainldm.evaluation.measures.volumetry import Measurement, measure, spacing_of
from brainldm.evaluation.metrics.conditioning import agreement_stats
from brainldm.evaluation.metrics.ssim import ms_ssim, scales_for
from brainldm.evaluation.page import render
from brainldm.runtime.files import write_atomically, write_json
from brainldm.runtime.format import format_interval, format_number
from brainldm.runtime.lock import new_folder
from brainldm.volumes.grids import Grid
from brainldm.weights.brain_age_folder import load_brain_age

MEASURED = ("ventricles_ml", "brain_ml")
TITLES = {"ventricles_ml": "Ventricular volume", "brain_ml": "Brain volume"}

Progress = Callable[[int, int, str], None]


def evaluate(
    synthetic: str | Path,
    real: str | Path,
    out: str | Path,
    *,
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    sweep: tuple[str, Sequence[float | str], Sequence[np.ndarray]] | None = None,
    max_pairs: int = 1000,
    med3d: str | Path | None = None,
    brain_age_model: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a generated BIDS dataset with a real one and write the report into the new folder `out`.

    Writes report.html (self-contained), report.json (the dictionary returned) and measurements.tsv.

    Args:
        synthetic: its participants.tsv says what was asked of each brain (ventricles_ml, brain_ml, age, sex).
        real: its participants.tsv says what is known of each person; measured in the same way, as reference.
        reconstructions: pairs (real, reconstructed) of volumes [D, H, W] or [D, H, W, 1] on the same grid.
        sweep: a condition's name, its values and the volumes generated with everything else fixed.
        max_pairs: the most pairs of volumes compared in each dataset (the paper: 1000).
        med3d: checkpoint file of a Med3D network; without one, features are those of a random network, and say so.
        brain_age_model: folder of a brain-age network, which tells the ages of both sets.
        seed: of the draw of pairs and of the bootstrap.
        progress: called with (done, total, what) after each image or comparison.

    Returns the figures; a figure that the data do not determine is None.

    Raises:
        UserError: for datasets that cannot be read or do not lie on one grid, a synthetic dataset without
            requested volumes, a `med3d` that is no Med3D checkpoint, a `brain_age_model` that is none or of another
            grid, or an `out` that holds something.
    """
    network = feature_network(med3d)
    teller = load_brain_age(brain_age_model) if brain_age_model else None
    made, people = open_datasets(synthetic, real)
    grid = made.grid
    if teller is not None:
        require_grid(teller, grid)
    spacing = spacing_of(grid)
    with new_folder(out) as out:
        pairs = sum(min(len(scans) * (len(scans) - 1) // 2, max_pairs) for scans in (made, people))
        looks = 2 if teller is None else 3
        steps = _Steps(looks * (len(made) + len(people)) + 3 * pairs, progress)
        measured = {
            "synthetic": _measure_all(made, steps, "generated", not is_stand_in(synthetic)),
            "real": _measure_all(people, steps, "real", not is_stand_in(real)),
        }
        scans = {"synthetic": made, "real": people}
        similar = {
            which: variety(one, max_pairs, seed, steps.of("comparing pairs of brains")) for which, one in scans.items()
        }
        figures: dict[str, Any] = {
            "brainldm_version": brainldm.__version__,
            "grid": {"shape": list(grid.shape), "spacing_mm": spacing},
            "seed": seed,
            "datasets": {"synthetic": _about(synthetic, made), "real": _about(real, people)},
            "conditions": conditions_in_words(scans),
            "stand_in": is_stand_in(synthetic) or is_stand_in(real),
            "agreement": {
                name: {
                    which: agreement_stats(
                        scans[which].values(name), _column(measured[which], name), seed=seed
                    ).to_dict()
                    for which in scans
                }
                for name in MEASURED
            },
            "agreement_in_groups": agreement_in_groups(
                made.records,
                {name: made.values(name) for name in MEASURED},
                {name: _column(measured["synthetic"], name) for name in MEASURED},
                seed,
            ),
            "not_measured": {
                which: [
                    {"id": record.name, "reason": m.reason}
                    for record, m in zip(scans[which].records, measured[which], strict=True)
                    if m.reason
                ]
                for which in scans
            },
            **{measure: {which: similar[which][measure] for which in scans} for measure in similar["real"]},
            "features": feature_distances(made, people, network, seed, steps.of("features")),
            "brain_age": teller and brain_age(made, people, teller, seed, steps.of("telling ages")),
            "sharpness": sharpness(made, people, spacing, seed),
            "morphometry": morphometry(
                *({"ventricles_ml": _column(measured[which], "ventricles_ml")} for which in scans),
                tuple(_column(measured[which], "icv_ml") for which in scans),
            ),
            "reconstruction": _reconstruction_figures(reconstructions),
            "sweep": _sweep_figures(sweep, grid, not is_stand_in(synthetic)),
        }
        figures = _plain(figures)
        write_atomically(out / "measurements.tsv", _table(scans, measured).encode())
        page = render(figures, scans, measured, reconstructions, sweep)
        write_atomically(out / "report.html", page.encode())
        write_json(out / "report.json", figures)
        return figures


def headline_lines(figures: dict[str, Any]) -> list[str]:
    """The three figures that matter: both volumes requested against measured, and how alike brains are."""
    lines = []
    for name in MEASURED:
        found = figures["agreement"][name]["synthetic"]
        lines.append(
            f"{TITLES[name]}, requested against measured: r = {format_number(found['r']['value'])} (n = {found['n']})"
        )
    among = figures["ms_ssim"]
    lines.append(
        f"MS-SSIM among generated brains: {format_number(among['synthetic']['mean'])}, "
        f"among real ones: {format_number(among['real']['mean'])}"
    )
    return lines


def summary_lines(figures: dict[str, Any]) -> list[str]:
    """The figures that matter as lines of text, each with its n."""
    lines = [] if figures["conditions"] else ["Nothing was requested: the model takes no conditions."]
    for name in MEASURED:
        for which, words in (
            ("synthetic", "requested against measured"),
            ("real", "label against measured, real"),
        ):
            found = figures["agreement"][name][which]
            if which == "synthetic" and not figures["conditions"]:
                continue
            lines.append(
                f"{TITLES[name]}, {words}: r {format_interval(**found['r'])}, "
                f"slope {format_interval(**found['slope'])}, "
                f"mean absolute error {format_number(found['mae']['value'])} mL (n = {found['n']}, not measured "
                f"{found['missing']})"
            )
    for which, words in (("synthetic", "generated"), ("real", "real")):
        found = figures["ms_ssim"][which]
        lines.append(
            f"MS-SSIM among {words} brains: {format_number(found['mean'])} (sd {format_number(found['sd'])}, "
            f"{found['pairs']} pairs of {found['volumes']}, {found['scales']} scales)"
        )
    lines.extend(_comparison_lines(figures))
    if figures["brain_age"]:
        lines.extend(brain_age_lines(figures["brain_age"]))
    found = figures["reconstruction"]
    if found:
        lines.append(f"Reconstructions: MS-SSIM to the original {format_number(found['ms_ssim'])} (n = {found['n']})")
    if figures["stand_in"]:
        lines.append("These data are the embedded population or come from it: a stand-in, not people.")
    return lines


def _comparison_lines(figures: dict[str, Any]) -> list[str]:
    """Variety by gradients, distances of features and sharpness."""
    lines = []
    made, people = (figures["gradient_ssim"][which]["mean"] for which in ("synthetic", "real"))
    lines.append(
        f"4-G-R-SSIM (single scale) among generated brains: {format_number(made)}, among real ones: "
        f"{format_number(people)}"
    )
    features = figures["features"]
    for which, words in (("synthetic", "generated against real"), ("real", "real against real, two halves")):
        found = features[which]
        kernel = format_interval(**found["kernel"]) if found["kernel"] else "not determined"
        few = "" if found["determined"] else f", too few brains for {features['features']} features"
        lines.append(
            f"{features['distance']}, {words}: {format_number(found['frechet'])}{few}; kernel distance {kernel} "
            f"(n = {found['n'][0]} and {found['n'][1]})"
        )
    shares = [figures["sharpness"][which]["high_frequency_share"] for which in ("synthetic", "real")]
    lines.append(
        "Power in high frequencies: generated "
        f"{format_interval(**shares[0])}, real {format_interval(**shares[1])} of all"
    )
    return lines


class _Steps:
    def __init__(self, total: int, progress: Progress | None):
        self._done, self._total, self._progress = 0, total, progress

    def of(self, what: str) -> Callable[[int], None]:
        """What counts further steps, called `what`."""

        def count(steps: int) -> None:
            self._done += steps
            if self._progress is not None:
                self._progress(self._done, self._total, what)

        return count


def _measure_all(scans: Scans, steps: _Steps, what: str, people: bool) -> list[Measurement]:
    found, count = [], steps.of(f"measuring {what} brains")
    for record, volume in zip(scans.records, scans, strict=True):
        found.append(measure(volume, scans.grid, people, registration_scale(record.path)))
        count(1)
    return found


def _column(measured: Sequence[Measurement], name: str) -> np.ndarray:
    return np.array([getattr(m, name) for m in measured])


def _about(root: str | Path, scans: Scans) -> dict[str, Any]:
    said = description(root)
    about = {"folder": Path(root).name, "n": len(scans), "name": said.get("Name", "")}
    for key, field in (
        ("model_sha256", "ModelSHA256"),
        ("model_kind", "ModelKind"),
        ("trained_on", "TrainedOn"),
    ):
        if field in said:
            about[key] = said[field]
    return about


def _reconstruction_figures(pairs: Sequence[tuple[np.ndarray, np.ndarray]] | None) -> dict[str, Any] | None:
    if not pairs:
        return None
    return {
        "ms_ssim": float(np.mean([ms_ssim(a, b) for a, b in pairs])),
        "mean_absolute_difference": float(np.mean([np.abs(np.asarray(a) - np.asarray(b)).mean() for a, b in pairs])),
        "n": len(pairs),
        "scales": scales_for(np.asarray(pairs[0][0]).shape[:3]),
    }


def _sweep_figures(sweep, grid: Grid, people: bool) -> dict[str, Any] | None:
    if sweep is None:
        return None
    name, values, volumes = sweep
    found = [measure(np.clip(np.nan_to_num(np.asarray(v, np.float32)), 0, 1), grid, people) for v in volumes]
    return {
        "name": name,
        "values": list(values),
        **{f"measured_{column}": _column(found, column).tolist() for column in MEASURED},
    }


def _table(scans: dict[str, Scans], measured: dict[str, list[Measurement]]) -> str:
    """measurements.tsv: for every image what its dataset says (asked) and what was measured."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Measurement)]
    writer.writerow(
        [
            "dataset",
            "id",
            *(f"{n}_asked" for n in MEASURED),
            *(f"measured_{f}" for f in fields[:-1]),
            fields[-1],
        ]
    )
    for which, found in measured.items():
        for record, m in zip(scans[which].records, found, strict=True):
            asked = [record.covariates.get(name, math.nan) for name in MEASURED]
            row = [*asked, *(getattr(m, field) for field in fields[:-1])]
            writer.writerow([which, record.name, *(_cell(value) for value in row), m.reason])
    return text.getvalue()


def _cell(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "n/a"


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dictionaries that JSON can hold; NaN and infinity become None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
