"""What sets a generated dataset apart from a real one: variety, distances of features, sharpness, morphometry.

Every figure stands beside the same figure of real brains against real ones: the real dataset split into two halves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from brainldm.evaluation.feature_networks import FeatureNetwork, vectors_of
from brainldm.evaluation.metrics.frechet import (
    extrapolated_frechet,
    frechet_distance,
    kernel_distance,
)
from brainldm.evaluation.metrics.intervals import mean_interval, percentile_interval
from brainldm.evaluation.metrics.manifolds import compare_manifolds
from brainldm.evaluation.metrics.pairs import pairwise_gradient_ssim, pairwise_ms_ssim
from brainldm.evaluation.metrics.spectrum import high_frequency_share, radial_power_spectrum

Volumes = Sequence[np.ndarray]
Report = Callable[[int], None] | None

_HALVES = 100
_LEAST = 8  # vectors in a set that is compared
_LEAST_STRUCTURES = 3


def variety(volumes: Volumes, max_pairs: int, seed: int, progress: Report = None) -> dict[str, Any]:
    """How alike the brains of one dataset are: {measure: figures of PairwiseSimilarity}."""
    shared = {"max_pairs": max_pairs, "seed": seed, "progress": progress}
    return {
        "ms_ssim": dataclasses.asdict(pairwise_ms_ssim(volumes, **shared)),
        "gradient_ssim": dataclasses.asdict(pairwise_gradient_ssim(volumes, **shared)),
        "gradient_ssim_multi_scale": dataclasses.asdict(pairwise_gradient_ssim(volumes, multi_scale=True, **shared)),
    }


def feature_distances(
    synthetic: Volumes, real: Volumes, network: FeatureNetwork, seed: int, progress: Report = None
) -> dict[str, Any]:
    """Distances between two sets of brains, and between two halves of the real one, in the features of `network`.

    Figures that the sets are too small for are None. `determined` says whether either set holds more brains than the
    network has features; below that the Frechet distance is biased beyond use, and `kernel` is the figure to read.
    """
    return compare_features(
        vectors_of(synthetic, network, progress), vectors_of(real, network, progress), network, seed
    )


def compare_features(made: np.ndarray, people: np.ndarray, network: FeatureNetwork, seed: int) -> dict[str, Any]:
    """`feature_distances` of features [N, D] and [M, D] that `network` has given."""
    order = np.random.default_rng([seed, len(people)]).permutation(len(people))
    halves = people[order[: len(order) // 2]], people[order[len(order) // 2 :]]
    return {
        "network": network.name,
        "distance": network.distance,
        "sha256": network.sha256,
        "features": network.features,
        "input": network.input,
        "synthetic": _distances(made, people, seed),
        "real": _distances(*halves, seed),
    }


def _distances(a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, Any]:
    """Of vectors [N, D], generated or one half, against [M, D], real or the other half."""
    found: dict[str, Any] = {
        "n": [len(a), len(b)],
        "determined": min(len(a), len(b)) > a.shape[1],
        "frechet": None,
        "frechet_extrapolated": None,
        "kernel": None,
        "manifolds": None,
    }
    if min(len(a), len(b)) < _LEAST:
        return found
    rng = np.random.default_rng([seed, len(a), len(b)])
    value = kernel_distance(a, b)
    # The delete-half jackknife (Shao & Wu 1989): resamples with replacement hold copies, which count as likeness.
    draws = [kernel_distance(_half(a, rng), _half(b, rng)) for _ in range(_HALVES)]
    spread = np.array(draws) - np.mean(draws)
    return found | {
        "frechet": frechet_distance(a, b),
        "frechet_extrapolated": extrapolated_frechet(a, b, seed=seed),
        "kernel": dataclasses.asdict(percentile_interval(value, value + spread)),
        "manifolds": dataclasses.asdict(compare_manifolds(b, a)),
    }


def _half(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return vectors[rng.choice(len(vectors), len(vectors) // 2, replace=False)]


def sharpness(synthetic: Volumes, real: Volumes, spacing_mm: float, seed: int) -> dict[str, Any]:
    """Radial power spectra of both sets, mean over brains, and their shares of high frequencies with intervals.

    `missing` is the share of the real high frequencies that generated brains lack, 0 where they have as much.
    """
    found: dict[str, Any] = {}
    for which, volumes in (("synthetic", synthetic), ("real", real)):
        spectra = [radial_power_spectrum(volume, spacing_mm) for volume in volumes]
        shares = np.array([high_frequency_share(*spectrum) for spectrum in spectra])
        found[which] = {
            "frequencies_per_mm": spectra[0][0].tolist() if spectra else [],
            "power": np.mean([power for _, power in spectra], 0).tolist() if spectra else [],
            "high_frequency_share": dataclasses.asdict(mean_interval(shares[np.isfinite(shares)], seed)),
        }
    made, people = (found[which]["high_frequency_share"]["value"] for which in ("synthetic", "real"))
    found["missing"] = max(0.0, 1 - made / people) if people else None
    return found


def morphometry(
    synthetic: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], icv_ml: tuple[np.ndarray, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Wasserstein distances of structures' volumes, as shares of the intracranial volume: {structure: figures}.

    Args:
        synthetic, real: mL by structure, NaN where it could not be measured.
        icv_ml: intracranial volumes of both.

    `wasserstein` is in percent of the intracranial volume; `standardised` is it over the standard deviation among real
    brains. Structures that fewer than three brains of either set have are left out.
    """
    found = {}
    for name in synthetic:
        shares = []
        for volumes, icv in ((synthetic[name], icv_ml[0]), (real[name], icv_ml[1])):
            share = 100 * np.asarray(volumes, float) / np.asarray(icv, float)
            shares.append(share[np.isfinite(share)])
        if min(map(len, shares)) < _LEAST_STRUCTURES:
            continue
        distance = wasserstein_distance(*shares)
        spread = shares[1].std(ddof=1)
        found[name] = {
            "wasserstein": distance,
            "standardised": distance / spread if spread > 0 else None,
            "mean": [float(share.mean()) for share in shares],
            "n": [len(share) for share in shares],
        }
    return found
