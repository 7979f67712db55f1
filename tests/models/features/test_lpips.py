"""LPIPS against the same network written in PyTorch (tests/golden/make_perceptual.py made the numbers)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perceptual_weights import images, squeeze_weights

from brainldm.models.features.lpips import load_lpips_squeeze, lpips_2p5d, lpips_distance, unit_channels
from brainldm.runtime.errors import UserError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "perceptual.npz"

# Compiled once for each shape, without optimising: the convolutions are a library's.
UNOPTIMISED = {"xla_backend_optimization_level": 0}
distance_of = jax.jit(lpips_distance, compiler_options=UNOPTIMISED)
distance_of_slices = jax.jit(lpips_2p5d, static_argnames="ratio", compiler_options=UNOPTIMISED)


@pytest.fixture(scope="module")
def params():
    return load_lpips_squeeze(squeeze_weights())


@pytest.mark.parametrize("shape", [(3, 40, 51, 1), (2, 37, 34, 1)])
def test_distance_agrees_with_pytorch(params, shape):
    """Sides for which the poolings end inside and outside the image."""
    expected = np.load(GOLDEN)[f"lpips_{shape[1]}x{shape[2]}"]
    result = distance_of(params, images(1, shape), images(2, shape))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_distance_is_zero_symmetric_and_of_each_pair(params):
    x, y = images(1, (3, 40, 51, 1)), images(2, (3, 40, 51, 1))
    distance = distance_of(params, x, y)
    # The two halves of the batch may be rounded differently.
    np.testing.assert_allclose(distance_of(params, x, x), np.zeros(3), atol=1e-10)
    np.testing.assert_allclose(distance_of(params, y, x), distance, rtol=1e-5)
    swapped = distance_of(params, x[::-1], y[::-1])
    np.testing.assert_allclose(swapped, distance[::-1], rtol=1e-5)
    assert np.all(np.asarray(distance) > 0)


def test_gradients_are_finite_where_features_vanish(params):
    """A dead stem gives all-zero feature vectors, where a plain square root has no gradient."""
    dead = jax.tree.map(np.copy, params)
    dead["stem"]["bias"] = np.full(64, -1e3, np.float32)
    x, y = images(1, (1, 20, 20, 1)), images(2, (1, 20, 20, 1))
    gradient = jax.jit(jax.grad(lambda x, weights: lpips_distance(weights, x, y).sum()), compiler_options=UNOPTIMISED)
    assert np.all(np.isfinite(gradient(x, params))) and np.any(gradient(x, params) != 0)
    assert np.all(np.isfinite(gradient(x, dead)))
    np.testing.assert_array_equal(unit_channels(jnp.zeros((2, 3))), np.zeros((2, 3)))
    np.testing.assert_allclose(unit_channels(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)


def test_all_slices_of_all_axes(params):
    """With ratio 1 nothing is random: the three means over all slices, added."""
    x, y = images(1, (2, 18, 18, 20, 1)), images(2, (2, 18, 18, 20, 1))
    expected = 0.0
    for axis in range(3):
        a, b = (np.moveaxis(v, 1 + axis, 1) for v in (x, y))
        a, b = (v.reshape(-1, *v.shape[2:]) for v in (a, b))
        expected += np.mean(distance_of(params, a, b))
    np.testing.assert_allclose(distance_of_slices(params, x, y, jax.random.key(0), ratio=1.0), expected, rtol=1e-5)


def test_the_same_random_slices_of_both(params):
    x, y = images(1, (2, 20, 20, 20, 1)), images(2, (2, 20, 20, 20, 1))
    np.testing.assert_allclose(distance_of_slices(params, x, x, jax.random.key(0), ratio=0.25), 0.0, atol=1e-10)
    first = float(distance_of_slices(params, x, y, jax.random.key(0), ratio=0.25))
    assert first == float(distance_of_slices(params, x, y, jax.random.key(0), ratio=0.25))
    assert first != float(distance_of_slices(params, x, y, jax.random.key(1), ratio=0.25))


def test_the_number_of_slices(monkeypatch):
    """int(n * ratio) slices of each volume for each axis, at least one, none of them twice."""
    seen = []

    def record(params, x, y):
        seen.append(np.asarray(x)[:, 0, 0, 0])
        return jnp.zeros(x.shape[0])

    monkeypatch.setattr("brainldm.models.features.lpips.lpips_distance", record)
    x = np.arange(2 * 21 * 21 * 21, dtype=np.float32).reshape(2, 21, 21, 21, 1)
    lpips_2p5d({}, x, x, jax.random.key(0), 0.5)
    assert [len(values) for values in seen] == [20, 20, 20]
    assert all(len(np.unique(values)) == 20 for values in seen)
    seen.clear()
    lpips_2p5d({}, x, x, jax.random.key(0), 0.01)
    assert [len(values) for values in seen] == [2, 2, 2]


def test_mistakes_are_explained(params):
    tensors = squeeze_weights()
    del tensors["features.4.squeeze.bias"], tensors["lin6.model.1.weight"]
    with pytest.raises(UserError, match=r"2 of 57 .* features\.4\.squeeze\.bias, lin6\.model\.1\.weight"):
        load_lpips_squeeze(tensors)
    tensors = squeeze_weights()
    tensors["features.0.weight"] = np.zeros((96, 3, 7, 7), np.float32)  # SqueezeNet 1.0
    with pytest.raises(UserError, match=r"features\.0\.weight \(96, 3, 7, 7\) instead of \(64, 3, 3, 3\)"):
        load_lpips_squeeze(tensors)
    with pytest.raises(UserError, match="at least 17"):
        lpips_distance(params, images(1, (1, 16, 30, 1)), images(1, (1, 16, 30, 1)))
    with pytest.raises(UserError, match="one-channel"):
        lpips_distance(params, images(1, (1, 20, 30, 3)), images(1, (1, 20, 30, 3)))
    with pytest.raises(UserError, match="share of slices"):
        lpips_2p5d(params, images(1, (1, 20, 20, 20, 1)), images(1, (1, 20, 20, 20, 1)), jax.random.key(0), 0.0)
