"""Fidelity and variety of generated brains in the space of a network's features, each apart.

Precision and recall (Kynkaanniemi et al. 2019): the share of generated brains inside the balls around real ones, and of
real ones inside the balls around generated ones; a ball reaches to the k-th neighbour within its set. Density and
coverage (Naeem et al. 2020) count balls, and are less moved by single outliers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.distance import cdist


@dataclasses.dataclass(frozen=True)
class Manifolds:
    """Precision, recall, density and coverage; all but density lie in 0..1, and density is about 1 for equal sets."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(
    real: np.ndarray, synthetic: np.ndarray, *, neighbours: int = 5, neighbours_pr: int = 3
) -> Manifolds:
    """Compare the rows of [N, D] and [M, D]: `neighbours` for density and coverage, `neighbours_pr` for the others.

    The defaults are those of the papers.

    Raises:
        ValueError: when a set has no more vectors than neighbours.
    """
    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    most = max(neighbours, neighbours_pr)
    if min(len(real), len(synthetic)) <= most:
        raise ValueError(f"more than {most} vectors needed in each set, got {len(real)} and {len(synthetic)}")
    across = cdist(real, synthetic)
    within_real, within_synthetic = np.sort(cdist(real, real), 1), np.sort(cdist(synthetic, synthetic), 1)
    # Column 0 is the distance of a vector to itself.
    radii = within_real[:, neighbours]
    inside = across < radii[:, None]
    return Manifolds(
        precision=float((across < within_real[:, neighbours_pr, None]).any(0).mean()),
        recall=float((across < within_synthetic[None, :, neighbours_pr]).any(1).mean()),
        density=float(inside.sum(0).mean() / neighbours),
        coverage=float((across.min(1) < radii).mean()),
    )
