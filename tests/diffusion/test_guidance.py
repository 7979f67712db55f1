"""Classifier-free guidance: the combination, one network call, one program for every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.guidance import guided
from brainldm.diffusion.objectives import denoiser
from brainldm.diffusion.samplers import ddim, initial_noise
from brainldm.diffusion.schedule import make_chain, make_schedule

X = np.random.default_rng(0).standard_normal((3, 4, 4, 4, 2)).astype(np.float32)
T = np.array([10, 500, 900], np.int32)
CONDITIONS = {"age": np.array([0.1, 0.5, 0.9], np.float32)}
NULL = {"age": np.float32(-1.0)}


def expand(values, x):
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def network(calls=None):
    """Sees x, t and the condition, so that a copy matched with the wrong sample shows."""

    def function(x, t, c):
        if calls is not None:
            calls.append((x.shape, t.shape, c["age"].shape))
        return x * expand(jnp.asarray(c["age"]), x) + 0.001 * expand(jnp.asarray(t, jnp.float32), x)

    return function


def expected(scale):
    t = 0.001 * expand(T.astype(np.float32), X)
    conditional = X * expand(CONDITIONS["age"], X) + t
    unconditional = -X + t
    return unconditional + scale * (conditional - unconditional)


@pytest.mark.parametrize("scale", [0.0, 0.5, np.float32(1.0), 3.0])
def test_combination_in_one_call(scale):
    calls = []
    result = guided(network(calls), NULL, scale)(X, T, CONDITIONS)
    assert calls == [((6, 4, 4, 4, 2), (6,), (6,))]
    np.testing.assert_allclose(result, expected(scale), rtol=1e-5, atol=2e-6)


def test_scale_one_is_the_conditional_model_and_does_not_pay_twice():
    calls = []
    plain = guided(network(calls), NULL, 1.0)(X, T, CONDITIONS)
    assert calls == [((3, 4, 4, 4, 2), (3,), (3,))]
    np.testing.assert_array_equal(guided(network(), NULL, jnp.float32(1.0))(X, T, CONDITIONS), plain)
    np.testing.assert_allclose(plain, expected(1.0), rtol=1e-6, atol=1e-6)


def test_one_scale_a_sample():
    scales = np.array([0.0, 1.0, 4.0], np.float32)
    found = guided(network(), NULL, scales)(X, T, CONDITIONS)
    np.testing.assert_allclose(found, expected(expand(scales, X)), rtol=1e-5, atol=2e-6)


def test_the_two_copies_of_a_sample_lie_side_by_side():
    seen = {}

    def function(x, t, c):
        seen.update(x=x, t=t, age=c["age"])
        return x

    guided(function, NULL, 2.0)(X, T, CONDITIONS)
    np.testing.assert_array_equal(seen["x"], np.repeat(X, 2, axis=0))
    np.testing.assert_array_equal(seen["t"], [10, 10, 500, 500, 900, 900])
    np.testing.assert_array_equal(seen["age"], np.float32([0.1, -1, 0.5, -1, 0.9, -1]))


def test_scale_is_traced_through_a_sampler():
    traces = []
    chain = make_chain(make_schedule(), 4)
    x_T = initial_noise(jax.random.split(jax.random.key(0), 2), (2, 2, 2, 1))
    conditions = {"age": np.array([0.1, 0.5], np.float32)}

    def chain_of(network, conditions):
        return ddim(denoiser(lambda x, t: network(x, t, conditions), chain, "epsilon"), chain, x_T, None)

    @jax.jit
    def sample(conditions, scale):
        traces.append(None)
        return chain_of(guided(network(), NULL, scale), conditions)

    first, second = sample(conditions, 1.0), sample(conditions, 3.0)
    assert len(traces) == 1
    assert not np.allclose(first, second)
    np.testing.assert_allclose(first, chain_of(network(), conditions), rtol=1e-5, atol=1e-6)
