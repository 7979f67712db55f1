"""Distances between two sets of brains in the space of a network's features.

The Frechet distance compares the Gaussians that fit two sets of feature vectors (Heusel et al. 2017, FID). It is biased
upwards in small sets; below as many vectors as features the covariance is singular and the figure means little. Beside
it stand its extrapolation to sets without end (Chong & Forsyth 2020) and the kernel distance (Binkowski et al. 2018,
KID), whose estimate has no bias at any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

EXTRAPOLATION_STEPS = 12
_LEAST = 10  # vectors in the smallest part of an extrapolation


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean [D] and sum of squared deviations [D, D] of `n` vectors, in float64."""

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, features: int) -> Moments:
        """Of no vector."""
        return cls(0, np.zeros(features), np.zeros((features, features)))

    @classmethod
    def of(cls, vectors: np.ndarray) -> Moments:
        """Of the rows of [N, D].

        Raises:
            ValueError: for another shape, and for values that are not finite.
        """
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or not len(vectors):
            raise ValueError(f"feature vectors are rows of [N, D], got an array of shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("feature vectors hold NaN or infinite values")
        mean = vectors.mean(0)
        centred = vectors - mean
        return cls(len(vectors), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together (Chan et al. 1979)."""
        n = self.n + other.n
        if not other.n or not self.n:
            return other if not self.n else self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.n / n)
        return Moments(n, mean, self.scatter + other.scatter + np.outer(shift, shift) * (self.n * other.n / n))

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, [D, D].

        Raises:
            ValueError: below two vectors.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two vectors or more, got {self.n}")
        return self.scatter / (self.n - 1)


def moments(batches: Iterable[np.ndarray]) -> Moments:
    """Moments of the rows of all batches [B, D], one batch in memory at a time.

    Raises:
        ValueError: when there is none.
    """
    total = None
    for batch in batches:
        found = Moments.of(batch)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("no feature vectors")
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of two sets of features (Dowson & Landau 1982).

    The trace of the square root is the sum of the singular values of A^(1/2) B^(1/2), which stays real and finite for
    singular covariances.

    Raises:
        ValueError: when the two have other features, or either has fewer than two vectors.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared")
    shift = a.mean - b.mean
    cov_a, cov_b = a.covariance, b.covariance
    cross = np.linalg.svd(_root(cov_a).T @ _root(cov_b), compute_uv=False).sum()
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_of_vectors(a: np.ndarray, b: np.ndarray) -> float:
    """`frechet_distance` of the rows of [N, D] and [M, D].

    With fewer vectors than features the singular values are those of the N x M matrix of products of deviations, which
    is the smaller one.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if max(len(a), len(b)) >= a.shape[1]:
        return frechet_distance(Moments.of(a), Moments.of(b))
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two vectors or more, got {len(a)} and {len(b)}")
    deviations_a = (a - a.mean(0)) / np.sqrt(len(a) - 1)
    deviations_b = (b - b.mean(0)) / np.sqrt(len(b) - 1)
    shift = a.mean(0) - b.mean(0)
    cross = np.linalg.svd(deviations_a @ deviations_b.T, compute_uv=False).sum()
    return float(shift @ shift + (deviations_a**2).sum() + (deviations_b**2).sum() - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R^T = covariance, of the eigenvalues that rounding has not made negative."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(values, 0, None))


def enough_vectors(n: int, features: int) -> bool:
    """Whether `n` vectors determine a covariance of `features` numbers."""
    return n > features


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
        frechet_of_vectors(a[rng.choice(len(a), n, replace=False)], b[rng.choice(len(b), n, replace=False)])
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
