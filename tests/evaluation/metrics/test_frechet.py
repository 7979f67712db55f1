"""Distances of feature sets against closed forms and public numbers."""

import json
import math

import numpy as np
import pytest

from brainldm.evaluation.metrics.frechet import (
    Moments,
    enough_vectors,
    extrapolated_frechet,
    frechet_distance,
    frechet_of_vectors,
    kernel_distance,
    moments,
)


def vectors(n, features=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, features))


def test_matches_the_public_implementation(shared):
    with np.load(shared / "golden" / "metrics.npz") as arrays:
        f1, f2 = arrays["f1"], arrays["f2"]
    expected = json.loads((shared / "golden" / "spec.json").read_text())["metrics"]["fid"]
    assert frechet_of_vectors(f1, f2) == pytest.approx(expected, rel=1e-6)


def test_batches_give_the_moments_of_all():
    x = vectors(50) + 1e4  # far from zero, where sums of squares lose their digits
    found = moments([x[:7], x[7:8], x[8:]])
    assert found.n == 50
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-6, atol=1e-9)
    assert (Moments.empty(6) + found).n == (found + Moments.empty(6)).n == 50


def test_closed_forms():
    x = vectors(400)
    assert frechet_of_vectors(x, x) == pytest.approx(0, abs=1e-9)
    shift = np.arange(6.0)
    assert frechet_of_vectors(x, x + shift) == pytest.approx(shift @ shift, rel=1e-9)
    # Scaling a Gaussian by s moves it by (s - 1)^2 times the trace of its covariance.
    centred = x - x.mean(0)
    expected = 0.25 * np.trace(np.cov(centred.T))
    assert frechet_of_vectors(centred, 1.5 * centred) == pytest.approx(expected, rel=1e-9)


def test_both_ways_to_the_cross_term_agree():
    a, b = vectors(12, 40), 1.3 * vectors(9, 40, seed=1)
    assert frechet_of_vectors(a, b) == pytest.approx(frechet_distance(Moments.of(a), Moments.of(b)), rel=1e-6)
    assert not enough_vectors(12, 40) and enough_vectors(41, 40)


def test_small_sets_are_biased_and_the_extrapolation_is_less_so():
    sets = [(vectors(40, seed=2 * k), vectors(40, seed=2 * k + 1)) for k in range(10)]
    plain, extrapolated = ([distance(a, b) for a, b in sets] for distance in (frechet_of_vectors, extrapolated_frechet))
    assert np.mean(plain) > 0.2 and abs(np.mean(extrapolated)) < np.mean(plain) / 2
    assert math.isnan(extrapolated_frechet(vectors(19), vectors(19)))


def test_kernel_distance_has_no_bias():
    found = [kernel_distance(vectors(15, seed=2 * k), vectors(15, seed=2 * k + 1)) for k in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    assert kernel_distance(vectors(50), vectors(50, seed=1) + 1) > 10 * np.std(found)


def test_bad_sets_are_refused():
    with pytest.raises(ValueError, match="two vectors"):
        frechet_of_vectors(vectors(1), vectors(5))
    with pytest.raises(ValueError, match="two vectors"):
        kernel_distance(vectors(5), vectors(1))
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(Moments.of(vectors(9)), Moments.of(vectors(9, 5)))
    with pytest.raises(ValueError, match="NaN"):
        Moments.of([[1.0, math.nan]])
    with pytest.raises(ValueError, match="no feature vectors"):
        moments([])
