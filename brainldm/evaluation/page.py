"""The evaluation report: what its page says, in which order."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from brainldm.evaluation import plots
from brainldm.reports.html import card, document, picture, section, table

_NAMES = {"ventricles_ml": "Ventricles", "brain_ml": "Brain"}
_SETS = {"synthetic": "generated: requested against measured", "real": "real: label against measured"}


def render(figures: dict[str, Any], scans: dict, measured: dict, reconstructions, sweep) -> str:
    """The page as text. `figures` as `evaluate` returns them; the rest is what the pictures are made of."""
    parts = [_head(figures), _cards(figures)]
    parts.append(
        section(
            "Generated and real brains",
            picture(
                plots.brains(scans["synthetic"], scans["real"], measured),
                "Generated brains over real ones",
                "Captions: age, sex, ventricles as requested (generated) or labelled (real), and as "
                "measured on the "
                "image. The pairs share conditions; they are not the same anatomy and need not look alike.",
            ),
        )
    )
    if reconstructions:
        found = figures["reconstruction"]
        parts.append(
            section(
                "Reconstructions",
                picture(
                    plots.reconstructed(reconstructions),
                    "Real brains over their reconstructions",
                    f"What the autoencoder keeps of a brain bounds what can be generated. MS-SSIM to the "
                    f"original {_number(found['ms_ssim'])}, mean absolute difference "
                    f"{_number(found['mean_absolute_difference'])} (n = {found['n']}, {found['scales']} "
                    f"scales).",
                ),
            )
        )
    if sweep is not None:
        parts.append(
            section(
                f"One condition varied: {html.escape(str(sweep[0]))}",
                picture(
                    plots.swept(sweep, figures["sweep"]),
                    "The same brain with one condition varied",
                    f"{len(sweep[1])} brains, drawn with the same noise; volumes in mL.",
                ),
            )
        )
    parts.append(section("Requested against measured", _scatters(scans, measured) + _agreement_table(figures)))
    parts.append(section("Conditions", _conditions_table(figures)))
    parts.append(section("Variety", _variety(figures)))
    parts.append(section("Method and limits", _method(figures)))
    return document("Generated brains: evaluation", "\n".join(parts))


def _head(figures: dict[str, Any]) -> str:
    made, people, grid = figures["datasets"]["synthetic"], figures["datasets"]["real"], figures["grid"]
    size = "x".join(map(str, grid["shape"]))
    text = (
        "<h1>Do the generated brains have what was asked for, and are they as varied as real ones?</h1>"
        f'<p class="lead">{made["n"]} generated brains ({_named(made)}) against {people["n"]} real ones '
        f"({_named(people)}), {size} voxels of {grid['spacing_mm']:g} mm. brainldm "
        f"{figures['brainldm_version']}.</p>"
    )
    if figures["stand_in"]:
        text += (
            '<p class="notice"><strong>These are stand-in data.</strong> One of the datasets is the '
            "embedded population of brainldm, or comes from a model trained on it: copies of one averaged "
            "template, deformed. Where this page says real, it means images of that population, not scans "
            "of people. The figures show that the method works end to end. They say nothing about brains "
            "of people.</p>"
        )
    return text


def _named(about: dict[str, Any]) -> str:
    name = f"{about['name']}, folder {about['folder']}" if about["name"] else f"folder {about['folder']}"
    if about.get("model_sha256"):
        name += f", model {str(about['model_sha256'])[:12]}"
    return html.escape(name)


def _cards(figures: dict[str, Any]) -> str:
    cards = []
    for name, title in (
        ("ventricles_ml", "Ventricular volume, requested against measured"),
        ("brain_ml", "Brain volume, requested against measured"),
    ):
        found = figures["agreement"][name]
        made, people = found["synthetic"], found["real"]
        cards.append(
            card(
                title,
                f"r = {_number(made['r']['value'], 3)}",
                f"95 % interval {_range(made['r'])}, n = {made['n']}.<br>On real images, label against "
                f"measured: "
                f"r = {_number(people['r']['value'], 3)}, n = {people['n']}.",
            )
        )
    made, people = figures["ms_ssim"]["synthetic"], figures["ms_ssim"]["real"]
    cards.append(
        card(
            "MS-SSIM among generated brains",
            f'{_number(made["mean"], 3)} <span class="beside">real {_number(people["mean"], 3)}</span>',
            f"{made['pairs']} and {people['pairs']} pairs, {made['scales']} scales.<br>Lower is more "
            f"varied; the aim is "
            "the value among real brains.",
        )
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _scatters(scans: dict, measured: dict) -> str:
    pictures = []
    for name, title in (
        ("ventricles_ml", "Lateral ventricles"),
        ("brain_ml", "Brain, normalised for head size"),
    ):
        pairs = {
            which: (scans[which].values(name), np.array([getattr(m, name) for m in measured[which]]))
            for which in ("synthetic", "real")
        }
        pictures.append(
            picture(
                plots.scatter(title, pairs["synthetic"], pairs["real"]),
                f"{title}: requested against measured",
                "",
                dark=False,
            )
        )
    return f'<div class="two">{"".join(pictures)}</div>'


def _agreement_table(figures: dict[str, Any]) -> str:
    rows = []
    for name, title in _NAMES.items():
        for which, words in _SETS.items():
            found = figures["agreement"][name][which]
            cells = [
                title,
                words,
                *(_with_range(found[key]) for key in ("r", "slope", "intercept", "mae")),
                str(found["n"]),
                str(found["missing"]),
            ]
            rows.append(cells)
    head = (
        "",
        "",
        "Pearson r",
        "slope",
        "intercept, mL",
        "mean absolute error, mL",
        "n",
        "not measured",
    )
    return table(head, rows) + (
        '<p class="small">In brackets 95 % intervals: percentile bootstrap over brains, 2000 resamples, '
        f"seed {figures['seed']}.</p>"
    )


def _conditions_table(figures: dict[str, Any]) -> str:
    rows = [
        [html.escape(text) for text in (name, words.get("synthetic", ""), words.get("real", "not in its table"))]
        for name, words in figures["conditions"].items()
    ]
    return table(("", "asked of the generated brains", "real brains"), rows)


def _variety(figures: dict[str, Any]) -> str:
    rows = [
        (
            words,
            _number(found["mean"], 4),
            _number(found["sd"], 4),
            str(found["pairs"]),
            str(found["volumes"]),
            str(found["scales"]),
        )
        for words, found in (("generated", figures["ms_ssim"]["synthetic"]), ("real", figures["ms_ssim"]["real"]))
    ]
    head = ("", "mean MS-SSIM", "standard deviation over pairs", "pairs", "brains", "scales")
    return (
        "<p>Mean multi-scale structural similarity between pairs of different brains of one dataset. Far "
        "above the value among real brains means that the generated ones repeat each other; far below, "
        "that they hold noise or broken anatomy.</p>"
    ) + table(head, rows)


def _method(figures: dict[str, Any]) -> str:
    lost = figures["not_measured"]
    scales = figures["ms_ssim"]["synthetic"]["scales"]
    text = (
        "<p><strong>Volumes</strong> are measured on the image alone, in the same way on generated and "
        "real brains, without a trained network: CSF connected with the core of the lateral ventricles "
        "inside a corridor around those of the MNI template, and the tissue fraction of the head. Partial "
        "volumes are counted by intensity. One line per voxel size puts both on the scale of known volumes "
        "of the embedded population. The measure has an error of its own, which the rows on real images "
        "show: the generated brains cannot be expected to do better. On 24 real scans with manual labels "
        "the ventricles came out about 5 mL too small, with r = 0.985 to 0.989. Blur takes off another 2 "
        "to 7 mL at 4 mm (half a voxel) and 1 to 3 mL at 2 mm.</p>"
        "<p><strong>The real labels</strong> are those of the dataset's own table and may have been "
        "measured by other software, with other ideas of where a ventricle ends; r is then more telling "
        "than slope and intercept.</p>"
        f"<p><strong>MS-SSIM</strong> as in Pinaya et al. 2022: Gaussian window of 7 voxels, data range 1, "
        f"{scales} of five scales (as many as the grid allows, weights scaled to sum to one). Values on "
        "different grids, or with different numbers of scales, cannot be compared.</p>"
        "<p><strong>Not shown here</strong>: whether a generated brain is a copy of a training image, and "
        "whether fine anatomy is right. Research use only, not for diagnosis.</p>"
    )
    for which, words in (("synthetic", "generated"), ("real", "real")):
        if lost[which]:
            listed = "; ".join(html.escape(f"{item['id']}: {item['reason']}") for item in lost[which][:10])
            text += f"<p><strong>Not measured</strong> among {words} images: {len(lost[which])} ({listed}).</p>"
    return text


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _range(found: dict[str, float | None]) -> str:
    if found["low"] is None or found["high"] is None:
        return "not determined"
    return f"{found['low']:.3f} to {found['high']:.3f}"


def _with_range(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "n/a"
    if found["low"] is None:
        return f"{found['value']:.3g}"
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
