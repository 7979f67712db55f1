"""Requested against measured in parts of a generated dataset: by sex and by decade of age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainldm.datasets.scans import Scan
from brainldm.evaluation.metrics.conditioning import agreement_stats

FEWEST = 5
"""Brains of a group; of fewer nothing is said."""


def groups_of(records: Sequence[Scan]) -> dict[str, np.ndarray]:
    """Which scans belong to a group, by its name ("F", "60 to 69 years"): as their tables have sex and age."""
    found: dict[str, np.ndarray] = {}
    sexes = np.array([str(record.covariates.get("sex", "")) for record in records])
    ages = np.array([float(record.covariates.get("age", np.nan)) for record in records])
    for sex in sorted(set(sexes.tolist()) - {""}):
        found[sex] = sexes == sex
    for decade in sorted(set((ages[np.isfinite(ages)] // 10).astype(int).tolist())):
        found[f"{10 * decade} to {10 * decade + 9} years"] = ages // 10 == decade
    return found


def agreement_in_groups(
    records: Sequence[Scan], requested: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray], seed: int
) -> dict[str, dict[str, Any]]:
    """{name: {group: figures}} of `agreement_stats` for each name of `requested`, both [N]; small groups left out."""
    groups = {group: which for group, which in groups_of(records).items() if which.sum() >= FEWEST}
    return {
        name: {
            group: agreement_stats(values[which], measured[name][which], seed=seed).to_dict()
            for group, which in groups.items()
        }
        for name, values in requested.items()
    }
