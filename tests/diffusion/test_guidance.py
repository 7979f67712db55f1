"""Classifier-free guidance: the combination, one network call, one program for every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.guidance import guided, match_batch, unguided
from brainldm.diffusion.samplers import ddim, initial_noise
from brainldm.diffusion.schedule import make_schedule

X = np.random.default_rng(0).standard_normal((3, 4, 4, 4, 2)).astype(np.float32)
T = np.array([10, 500, 900], np.int32)
CONDITIONS = {"age": np.array([0.1, 0.5, 0.9], np.float32)}


def expand(values, x):
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def network(calls=None, conditions=CONDITIONS):
    """Sees x, t and the condition, so that a copy matched with the wrong sample shows."""

    def denoise_with_drop(x, t, drop):
        if calls is not None:
            calls.append((x.shape, t.shape, drop.shape))
        age = match_batch(conditions, x)["age"]
        age = jnp.where(drop, -1.0, age)
        return x * expand(jnp.asarray(age), x) + 0.001 * expand(t.astype(jnp.float32), x)

    return denoise_with_drop


def expected(scale):
    t = 0.001 * expand(T.astype(np.float32), X)
    conditional = X * expand(CONDITIONS["age"], X) + t
    unconditional = -X + t
    return unconditional + scale * (conditional - unconditional)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_combination_in_one_call(scale):
    calls = []
    result = guided(network(calls), scale)(X, T)
    assert calls == [((6, 4, 4, 4, 2), (6,), (6,))]
    np.testing.assert_allclose(result, expected(scale), rtol=1e-5, atol=2e-6)


def test_scale_one_is_the_conditional_model_and_unguided_does_not_pay_twice():
    calls = []
    plain = unguided(network(calls))(X, T)
    assert calls == [((3, 4, 4, 4, 2), (3,), (3,))]
    np.testing.assert_array_equal(guided(network(), 1.0)(X, T), plain)
    np.testing.assert_allclose(plain, expected(1.0), rtol=1e-6, atol=1e-6)


def test_one_scale_a_sample():
    scales = np.array([0.0, 1.0, 4.0], np.float32)
    np.testing.assert_allclose(guided(network(), scales)(X, T), expected(expand(scales, X)), rtol=1e-5, atol=2e-6)


def test_scalar_time_is_given_to_every_sample():
    np.testing.assert_array_equal(guided(network(), 2.0)(X, 500), guided(network(), 2.0)(X, np.full(3, 500)))
    np.testing.assert_array_equal(unguided(network())(X, 500), unguided(network())(X, np.full(3, 500)))


def test_scale_is_traced_through_a_sampler():
    traces = []
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 2)
    x_T = initial_noise(keys, (2, 2, 2, 1))

    @jax.jit
    def sample(conditions, scale):
        traces.append(None)
        return ddim(guided(network(conditions=conditions), scale), schedule, x_T, keys, num_steps=4)

    conditions = {"age": np.array([0.1, 0.5], np.float32)}
    first, second = sample(conditions, 1.0), sample(conditions, 3.0)
    assert len(traces) == 1
    assert not np.allclose(first, second)
    plain = ddim(unguided(network(conditions=conditions)), schedule, x_T, keys, num_steps=4)
    np.testing.assert_allclose(first, plain, rtol=1e-5, atol=1e-6)


def test_match_batch():
    np.testing.assert_array_equal(match_batch(jnp.array([1, 2]), jnp.zeros((4, 1))), [1, 1, 2, 2])
    same = jnp.array([[1.0], [2.0]])
    assert match_batch(same, jnp.zeros((2, 1))) is same
    with pytest.raises(ValueError, match="batch of 3"):
        match_batch(same, jnp.zeros((3, 1)))
