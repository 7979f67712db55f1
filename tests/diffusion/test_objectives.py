"""Targets, conversions, weights and the loss, against formulas worked out in float64 numpy."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.objectives import (
    PREDICTIONS,
    TIMES,
    add_noise,
    denoiser,
    diffusion_loss,
    draw_times,
    min_snr_weight,
    target,
    to_x0_and_noise,
)
from brainldm.diffusion.schedule import alpha_bar, make_chain, make_schedule
from brainldm.runtime.errors import UserError

SCHEDULE = make_schedule()
T = np.array([0, 1, 300, 750, 999], np.int32)
ALPHA_BAR = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)[T]


def pair(shape=(5, 4, 3, 2, 3)):
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


def test_add_noise_and_velocity():
    x0, noise = pair()
    a = ALPHA_BAR.reshape(5, 1, 1, 1, 1)
    np.testing.assert_allclose(
        add_noise(SCHEDULE, x0, noise, T), np.sqrt(a) * x0 + np.sqrt(1 - a) * noise, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        target(SCHEDULE, "velocity", x0, noise, T),
        np.sqrt(a) * noise - np.sqrt(1 - a) * x0,
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(target(SCHEDULE, "epsilon", x0, noise, T), noise)
    np.testing.assert_array_equal(target(SCHEDULE, "x0", x0, noise, T), x0)


def test_low_precision_input_is_computed_in_float32():
    x0, noise = (jnp.asarray(array, jnp.bfloat16) for array in pair())
    for prediction in PREDICTIONS:
        assert target(SCHEDULE, prediction, x0, noise, T).dtype == jnp.float32
    assert add_noise(SCHEDULE, x0, noise, T).dtype == jnp.float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_stands_for_the_same_x0_and_noise(prediction):
    x0, noise = pair()
    x_t = add_noise(SCHEDULE, x0, noise, T)
    output = target(SCHEDULE, prediction, x0, noise, T)
    x0_back, noise_back = to_x0_and_noise(prediction, output, x_t, *alpha_bar(SCHEDULE, T, x_t.ndim))
    # A float32 rounding of x_t is divided by sqrt(alpha_bar) = 0.0098 at t = 999 (epsilon) and by
    # sqrt(1 - alpha_bar) = 0.039 at t = 0 (x0).
    np.testing.assert_allclose(x0_back, x0, atol=5e-5)
    np.testing.assert_allclose(noise_back, noise, atol=2e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_denoiser_reads_the_network_at_each_level_of_its_chain(prediction):
    x0, noise = pair((2, 4, 3, 2, 3))
    chain, times = make_chain(SCHEDULE, 4), []

    def network(x, t):
        times.append(np.asarray(t))
        return target(SCHEDULE, prediction, x0, noise, t.astype(int))

    denoise = denoiser(network, chain, prediction)
    for i, t in enumerate((750, 500, 250, 0)):
        found = denoise(add_noise(SCHEDULE, x0, noise, t), i)
        np.testing.assert_array_equal(times[i], [t, t])
        np.testing.assert_allclose(found[0], x0, atol=5e-5)
        np.testing.assert_allclose(found[1], noise, atol=2e-5)


def test_min_snr_weights():
    gamma = 5.0
    snr = ALPHA_BAR / (1 - ALPHA_BAR)
    expected = {
        "x0": np.minimum(snr, gamma),
        "epsilon": np.minimum(1.0, gamma / snr),
        "velocity": np.minimum(snr, gamma) / (snr + 1),
        "flow": np.minimum(snr, gamma) / (np.sqrt(snr) + 1) ** 2,
    }
    assert np.any(snr < gamma) and np.any(snr > gamma)
    for prediction, weights in expected.items():
        np.testing.assert_allclose(min_snr_weight(SCHEDULE, prediction, T, gamma), weights, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_same_error_in_x0_alike(prediction):
    """The weighted loss must not depend on which quantity the network outputs, only on its error in x_0."""
    x0, noise = pair()
    t = np.array([10, 100, 300, 500, 750], np.int32)
    a = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)[t]

    def denoise(x_t, _):
        """Answers with x_0 + 0.1, expressed as the quantity asked for."""
        wrong = jnp.asarray(x0) + 0.1
        s, n = (np.sqrt(v).reshape(5, 1, 1, 1, 1).astype(np.float32) for v in (a, 1 - a))
        eps = (x_t - s * wrong) / n
        return {"x0": wrong, "epsilon": eps, "velocity": s * eps - n * wrong, "flow": eps - wrong}[prediction]

    loss = diffusion_loss(SCHEDULE, prediction, denoise, x0, noise, t, min_snr_gamma=5.0)
    np.testing.assert_allclose(loss, 0.01 * np.minimum(a / (1 - a), 5.0), rtol=2e-4)


def test_loss_is_the_mean_squared_error_of_each_sample():
    x0, noise = pair()
    seen = {}

    def denoise(x_t, t):
        seen["x_t"], seen["t"] = x_t, t
        return jnp.zeros_like(x_t).astype(jnp.bfloat16)

    loss = diffusion_loss(SCHEDULE, "epsilon", denoise, x0, noise, T)
    assert loss.shape == (5,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.mean(noise.astype(np.float64) ** 2, axis=(1, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_array_equal(seen["x_t"], add_noise(SCHEDULE, x0, noise, T))
    np.testing.assert_array_equal(seen["t"], T)


def test_a_perfect_network_has_no_loss_and_gradients_are_finite():
    x0, noise = pair()
    for prediction in PREDICTIONS:
        exact = target(SCHEDULE, prediction, x0, noise, T)
        np.testing.assert_array_equal(
            diffusion_loss(SCHEDULE, prediction, lambda x, t, exact=exact: exact, x0, noise, T), np.zeros(5)
        )

        def mean_loss(scale, prediction=prediction):
            return diffusion_loss(SCHEDULE, prediction, lambda x, t: scale * x, x0, noise, T, 5.0).mean()

        assert np.isfinite(jax.grad(mean_loss)(0.5))


def test_unknown_prediction_is_explained():
    x0, noise = pair()
    for call in (
        lambda: target(SCHEDULE, "v_prediction", x0, noise, T),
        lambda: to_x0_and_noise("v_prediction", x0, noise, *alpha_bar(SCHEDULE, T, 5)),
        lambda: denoiser(lambda x, t: x, make_chain(SCHEDULE, 5), "v_prediction"),
        lambda: min_snr_weight(SCHEDULE, "v_prediction", T, 5.0),
    ):
        with pytest.raises(UserError, match="epsilon, velocity, x0"):
            call()


def test_times_are_drawn_as_their_distribution_says():
    key = jax.random.key(0)
    uniform, middle = (np.asarray(draw_times(key, 20_000, 1000, name)) for name in TIMES)
    for t in (uniform, middle):
        assert t.dtype == np.int32 and t.min() >= 0 and t.max() <= 999
    assert np.mean((uniform >= 250) & (uniform < 750)) == pytest.approx(0.5, abs=0.02)
    inside = 2 * NormalDist().cdf(np.log(3)) - 1  # sigmoid(z) between 1/4 and 3/4
    assert np.mean((middle >= 250) & (middle < 750)) == pytest.approx(inside, abs=0.02)
    with pytest.raises(UserError, match="uniform, logit_normal"):
        draw_times(key, 4, 1000, "normal")
