"""Distances between two sets of brains in the space of a network's features.

The Frechet distance compares the Gaussians that fit two sets of feature vectors (Heusel et al. 2017, FID). It is biased
upwards in small sets; below as many vectors as features the covariance is singular and the figure means little. Beside
it stand its extrapolation to sets without end (Chong & Forsyth 2020) and the kernel distance (Binkowski et al. 2018,
KID), whose estimate has no bias at any size.
"""

from __future__ import annotations

import numpy as np

EXTRAPOLATION_STEPS = 12
_LEAST = 10  # vectors in the smallest part of an extrapolation


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of the Gaussians that fit the rows of [N, D] and [M, D].

    Dowson & Landau 1982, with unbiased covariances A and B, in float64. The trace of the square root is the sum of the
    singular values of R^T S, R R^T being A and S S^T being B, which stays real and finite for singular covariances. The
    deviations of the vectors are such roots; where there are more vectors than features, eigenvectors are smaller ones.

    Raises:
        ValueError: for sets of other features, of fewer than two vectors, and for values that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"feature vectors are rows of [N, D], got arrays of shapes {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two vectors or more, got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("feature vectors hold NaN or infinite values")
    shift = a.mean(0) - b.mean(0)
    roots = [_root(vectors) for vectors in (a, b)]
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    return float(shift @ shift + sum((root**2).sum() for root in roots) - 2 * cross)


def _root(vectors: np.ndarray) -> np.ndarray:
    """R [D, N or D] with R R^T the covariance of the rows of [N, D]."""
    deviations = (vectors - vectors.mean(0)).T / np.sqrt(len(vectors) - 1)
    if deviations.shape[1] <= len(deviations):
        return deviations
    values, eigenvectors = np.linalg.eigh(deviations @ deviations.T)
    return eigenvectors * np.sqrt(np.clip(values, 0, None))  # rounding makes some of zero negative


def extrapolated_frechet(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
    """The Frechet distance of [N, D] and [M, D] for sets without end: a line in 1 / n fitted to parts of size n.

    NaN where the smaller set has fewer than 20 vectors.
    """
    most = min(len(a), len(b))
    if most < 2 * _LEAST:
        return float("nan")
    sizes = np.unique(np.linspace(max(most // 4, _LEAST), most, EXTRAPOLATION_STEPS).astype(int))
    rng = np.random.default_rng([seed, most])
    found = [
        frechet_distance(a[rng.choice(len(a), n, replace=False)], b[rng.choice(len(b), n, replace=False)])
        for n in sizes
    ]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of [N, D] and [M, D] with the kernel (x . y / D + 1)^3, without bias (KID).

    It may be slightly negative for sets that are alike.

    Raises:
        ValueError: below two vectors in either set.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs two vectors or more, got {len(a)} and {len(b)}")

    def kernel(x, y):
        return (x @ y.T / a.shape[1] + 1) ** 3

    def within(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
