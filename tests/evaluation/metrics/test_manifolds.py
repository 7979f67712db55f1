"""Precision, recall, density and coverage where they are known."""

import numpy as np
import pytest

from brainldm.evaluation.metrics.manifolds import compare_manifolds


def draw(n, seed=0, features=4):
    return np.random.default_rng(seed).normal(size=(n, features))


def test_equal_distributions():
    found = compare_manifolds(draw(400), draw(400, 1))
    assert found.precision > 0.85 and found.recall > 0.85 and found.coverage > 0.9
    assert found.density == pytest.approx(1, abs=0.1)


def test_sets_apart_share_nothing():
    found = compare_manifolds(draw(100), draw(100, 1) + 50)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_few_kinds_of_brain_are_precise_and_cover_little():
    real = np.concatenate([draw(100), draw(100, 1) + 20])
    found = compare_manifolds(real, draw(200, 2))  # one of two kinds
    assert found.precision > 0.8 and found.recall < 0.6 and found.coverage < 0.6


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match="more than 5"):
        compare_manifolds(draw(5), draw(100))
