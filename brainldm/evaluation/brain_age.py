"""The age of brains by a network, against the age asked for: the paper's second figure of conditioning.

Pinaya et al. 2022 tell ages with the network of Cole et al. 2017, trained on the same scans as the model, and find
r = 0.692. What such a network tells of generated brains is worth no more than what it tells of people that it has not
seen, so its own error always stands beside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from brainldm.evaluation.comparisons import compare_features
from brainldm.evaluation.datasets import Scans
from brainldm.evaluation.feature_networks import brain_age_network, vectors_of
from brainldm.evaluation.metrics.conditioning import agreement_stats
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_interval, format_number, format_shape
from brainldm.volumes.grids import Grid
from brainldm.weights.brain_age_folder import BrainAgeModel


def require_grid(model: BrainAgeModel, grid: Grid) -> None:
    """Raise UserError when brains lie on another grid than those that the network learnt from."""
    own = model.spec.grid
    if tuple(own.shape) != tuple(grid.shape) or not np.allclose(own.affine, grid.affine, atol=1e-3):
        raise UserError(
            f"--brain-age: the network tells ages from {format_shape(own.shape)} voxels of "
            f"{format_shape(own.spacing_mm)} mm, and the generated brains have {format_shape(grid.shape)} of "
            f"{format_shape(grid.spacing_mm)} mm at their own place. Give one that was trained on their grid "
            "(brainldm train --config brain_age, config.data.spacing_mm)."
        )


def brain_age(
    made: Scans, people: Scans, model: BrainAgeModel, seed: int, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The figures of a network: what it was before, ages asked against told, labels against told, its features.

    Ages that a dataset does not hold count as missing.
    """
    network = brain_age_network(model)
    told = {which: vectors_of(scans, network, progress) for which, scans in (("synthetic", made), ("real", people))}
    return {
        "sha256": model.sha256,
        "years": list(model.spec.years),
        "trained_on": model.spec.provenance.get("dataset", "unknown"),
        "held_out": {"r": None, **model.spec.held_out},
        "agreement": {
            which: agreement_stats(scans.values("age"), told[which][:, 0], seed=seed).to_dict()
            for which, scans in (("synthetic", made), ("real", people))
        },
        "features": compare_features(told["synthetic"][:, 1:], told["real"][:, 1:], network, seed),
    }


def brain_age_lines(figures: dict[str, Any]) -> list[str]:
    """The figures as text, what the network was worth before its verdict."""
    held_out = figures["held_out"]
    lines = [
        f"Brain-age network {figures['sha256'][:12]}, on {held_out['n']:g} scans that it was not trained on: mean "
        f"absolute error {format_number(held_out['mae'])} years, r {format_number(held_out['r'])}"
    ]
    for which, words in (("synthetic", "requested against told"), ("real", "label against told, real")):
        found = figures["agreement"][which]
        if found["n"]:
            lines.append(
                f"Age, {words}: r {format_interval(**found['r'])}, slope {format_interval(**found['slope'])}, mean "
                f"absolute error {format_interval(**found['mae'])} years (n = {found['n']}, without an age "
                f"{found['missing']})"
            )
    features = figures["features"]
    made, people = (format_number(features[which]["frechet"]) for which in ("synthetic", "real"))
    few = "" if features["synthetic"]["determined"] else f" (too few brains for {features['features']} features)"
    lines.append(f"{features['distance']}: generated against real {made}, two halves of the real {people}{few}")
    return lines
