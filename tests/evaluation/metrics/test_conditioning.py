"""Requested against measured values."""

import numpy as np
import pytest
from scipy import stats

from brainldm.evaluation.metrics.conditioning import agreement_stats


def test_figures_match_scipy():
    rng = np.random.default_rng(0)
    x = rng.uniform(7, 171, 60)
    y = 0.9 * x + 3 + rng.normal(0, 8, 60)
    line = stats.linregress(x, y)
    found = agreement_stats(x, y)
    assert found.r.value == pytest.approx(line.rvalue, abs=1e-12)
    assert found.slope.value == pytest.approx(line.slope, abs=1e-12)
    assert found.intercept.value == pytest.approx(line.intercept, abs=1e-10)
    assert found.mae.value == pytest.approx(np.abs(x - y).mean())
    assert (found.n, found.missing) == (60, 0)
    # The bootstrap agrees with the normal-theory interval of the slope within a third of its width.
    half = stats.t.ppf(0.975, 58) * line.stderr
    assert found.slope.low == pytest.approx(line.slope - half, abs=half / 1.5)
    assert found.slope.high == pytest.approx(line.slope + half, abs=half / 1.5)


def test_intervals_cover_the_truth():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0, 10, 40)
        found = agreement_stats(x, 2 * x + rng.normal(0, 3, 40), resamples=500)
        covered += found.slope.low <= 2 <= found.slope.high
    assert 51 <= covered <= 60


def test_missing_values_are_counted():
    x, y = np.arange(10.0), np.arange(10.0) * 1.1
    y[[2, 5]] = np.nan
    found = agreement_stats(x, y)
    assert (found.n, found.missing) == (8, 2)
    assert found.r.value == pytest.approx(1) and found.slope.value == pytest.approx(1.1)


def test_undetermined_figures_are_nan_not_errors():
    few = agreement_stats([1.0, 2.0], [1.0, 2.0])
    assert np.isnan(few.r.value) and few.n == 2
    constant = agreement_stats([40.0] * 6, [39.0, 41, 40, 42, 38, 40])
    assert np.isnan(constant.r.value) and np.isnan(constant.slope.value)
    assert constant.mae.value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one length"):
        agreement_stats([1, 2, 3], [1, 2])


def test_same_seed_same_intervals():
    rng = np.random.default_rng(1)
    x, y = rng.random(30), rng.random(30)
    assert agreement_stats(x, y) == agreement_stats(x, y)
    assert agreement_stats(x, y, seed=1).r != agreement_stats(x, y, seed=2).r
