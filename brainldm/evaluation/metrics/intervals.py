"""A figure with its confidence interval, from the bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval; all three in the unit of the figure."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def percentile_interval(value: float, draws: np.ndarray) -> Interval:
    """The figure `value` with the 2.5th and 97.5th percentile of its resampled `draws`; NaN among these is left out."""
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(draws):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def resampled(n: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Indices [resamples, n] of samples of n drawn with replacement, from `default_rng([seed, n])`."""
    return np.random.default_rng([seed, n]).integers(0, n, size=(resamples, n))


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of n numbers with its percentile bootstrap interval; NaN where there is none."""
    values = np.asarray(values, float)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    return percentile_interval(values.mean(), values[resampled(len(values), seed)].mean(1))
