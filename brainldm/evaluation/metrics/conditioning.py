"""Does a generated brain have what was asked for: requested against measured values.

The paper's figure is Pearson's r between the requested ventricular volume and the one measured on the generated brains
(Pinaya et al. 2022, section 3.2: r = 0.972 over 1000 brains). r alone does not see a wrong scale, so slope, intercept
and mean absolute error stand beside it, each with a 95 % interval.
"""

from dataclasses import asdict, dataclass

import numpy as np

from brainldm.evaluation.metrics.intervals import RESAMPLES, Interval, percentile_interval, resampled


@dataclass(frozen=True)
class Agreement:
    """Agreement of measured with requested values.

    `r` Pearson's correlation; `slope` and `intercept` of the least-squares line measured = slope * requested +
    intercept; `mae` mean absolute error in the values' unit; `n` pairs used; `missing` pairs left out because either
    value is NaN. Figures that the data do not determine are NaN (below three pairs; r, slope and intercept when all
    requested values are equal).
    """

    r: Interval
    slope: Interval
    intercept: Interval
    mae: Interval
    n: int
    missing: int

    def to_dict(self) -> dict:
        return asdict(self)


def agreement_stats(requested, measured, *, resamples: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Agreement of two sequences of n numbers, with percentile bootstrap intervals over the pairs.

    The bootstrap draws `resamples` samples of n pairs from `default_rng([seed, n])`, so the same data and seed give
    the same intervals.

    Raises:
        ValueError: when the two differ in length or are not one-dimensional.
    """
    requested, measured = np.asarray(requested, float), np.asarray(measured, float)
    if requested.ndim != 1 or requested.shape != measured.shape:
        raise ValueError(f"two sequences of one length needed, got {requested.shape} and {measured.shape}")
    usable = np.isfinite(requested) & np.isfinite(measured)
    x, y = requested[usable], measured[usable]
    n = len(x)
    if n < 3:
        nothing = Interval(np.nan, np.nan, np.nan)
        return Agreement(nothing, nothing, nothing, nothing, n, int((~usable).sum()))
    picks = resampled(n, seed, resamples)
    values = _figures(x[None], y[None])[:, 0]
    draws = _figures(x[picks], y[picks])
    intervals = [percentile_interval(v, d) for v, d in zip(values, draws, strict=True)]
    return Agreement(*intervals, n=n, missing=int((~usable).sum()))


def _figures(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """r, slope, intercept and MAE of each row of x and y [samples, n]; returns [4, samples]."""
    mean_x, mean_y = x.mean(1), y.mean(1)
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    sxx, syy, sxy = (dx * dx).sum(1), (dy * dy).sum(1), (dx * dy).sum(1)
    # Rounding leaves a spread of about 1e-16 of the values where there is none.
    flat_x = sxx <= 1e-20 * np.maximum((x * x).sum(1), 1e-300)
    flat_y = syy <= 1e-20 * np.maximum((y * y).sum(1), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(flat_x | flat_y, np.nan, np.clip(sxy / np.sqrt(sxx * syy), -1, 1))
        slope = np.where(flat_x, np.nan, sxy / sxx)
    return np.stack([r, slope, mean_y - slope * mean_x, np.abs(y - x).mean(1)])
