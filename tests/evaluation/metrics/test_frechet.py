"""Distances of feature sets against closed forms and public numbers."""

import json
import math

import numpy as np
import pytest

from brainldm.evaluation.metrics.frechet import extrapolated_frechet, frechet_distance, kernel_distance


def vectors(n, features=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, features))


def test_matches_the_public_implementation(shared):
    with np.load(shared / "golden" / "metrics.npz") as arrays:
        f1, f2 = arrays["f1"], arrays["f2"]
    expected = json.loads((shared / "golden" / "spec.json").read_text())["metrics"]["fid"]
    assert frechet_distance(f1, f2) == pytest.approx(expected, rel=1e-6)


def test_closed_forms():
    x = vectors(400)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    shift = np.arange(6.0)
    assert frechet_distance(x, x + shift) == pytest.approx(shift @ shift, rel=1e-9)
    # Scaling a Gaussian by s moves it by (s - 1)^2 times the trace of its covariance.
    centred = x - x.mean(0)
    expected = 0.25 * np.trace(np.cov(centred.T))
    assert frechet_distance(centred, 1.5 * centred) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(12, 9), (12, 60), (60, 9), (60, 50)])
def test_singular_covariances_agree_with_the_plain_formula(n, m):
    a, b = vectors(n, 40) + 1e3, 1.3 * vectors(m, 40, seed=1) + 1e3  # far from zero, where plain sums lose digits
    shift, cov_a, cov_b = a.mean(0) - b.mean(0), np.cov(a.T), np.cov(b.T)
    cross = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None)).sum()
    expected = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_small_sets_are_biased_and_the_extrapolation_is_less_so():
    sets = [(vectors(40, seed=2 * k), vectors(40, seed=2 * k + 1)) for k in range(10)]
    plain, extrapolated = ([distance(a, b) for a, b in sets] for distance in (frechet_distance, extrapolated_frechet))
    assert np.mean(plain) > 0.2 and abs(np.mean(extrapolated)) < np.mean(plain) / 2
    assert math.isnan(extrapolated_frechet(vectors(19), vectors(19)))


def test_kernel_distance_has_no_bias():
    found = [kernel_distance(vectors(15, seed=2 * k), vectors(15, seed=2 * k + 1)) for k in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    assert kernel_distance(vectors(50), vectors(50, seed=1) + 1) > 10 * np.std(found)


def test_bad_sets_are_refused():
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(vectors(1), vectors(5))
    with pytest.raises(ValueError, match="two vectors"):
        kernel_distance(vectors(5), vectors(1))
    with pytest.raises(ValueError, match="rows of"):
        frechet_distance(vectors(9), vectors(9, 5))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(vectors(9), np.full((9, 6), math.nan))
