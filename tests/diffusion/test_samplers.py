"""Samplers against reference chains, against an oracle, and against their own promises."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.objectives import PREDICTIONS, target, to_x0_and_noise
from brainldm.diffusion.samplers import ddim, ddim_step, ddpm, ddpm_step, initial_noise, step_noise
from brainldm.diffusion.schedule import ddim_timesteps, make_schedule
from brainldm.runtime.errors import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "schedulers.npz"
SCHEDULE = make_schedule()
SHAPE = (4, 3, 2, 3)


def keys_of(*seeds):
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def smooth(x, t):
    """A closed-form denoiser: works for any t shape [B]."""
    return 0.3 * x + 0.05 * jnp.sin(t.astype(jnp.float32) / 100).reshape(-1, *(1,) * (x.ndim - 1))


def oracle(x0, prediction):
    """The network that knows the clean latent: any chain must end there."""

    def denoise(x, t):
        _, noise = to_x0_and_noise(SCHEDULE, "x0", x0, x, t)
        return target(SCHEDULE, prediction, x0, noise, t)

    return denoise


@pytest.mark.parametrize("num_steps", [50, 20])
@pytest.mark.parametrize("name, prediction", [("epsilon", "epsilon"), ("v_prediction", "velocity")])
def test_ddim_steps_agree_with_the_reference_chain(name, prediction, num_steps):
    """The reference (MONAI 1.6.1) spreads its time steps over 999 ... 0 but always goes back by 1000 //
    steps."""
    golden = np.load(GOLDEN)
    x = np.moveaxis(golden["x"], 1, -1)
    expected = np.moveaxis(golden[f"ddim_{name}_{num_steps}"], 1, -1)

    @jax.jit
    def step(x, t):
        output = smooth(x, jnp.full((1,), t))
        return ddim_step(SCHEDULE, prediction, output, x, t, t - 1000 // num_steps, jnp.zeros_like(x))

    for t in np.linspace(999, 0, num_steps).round().astype(np.int32):
        x = step(x, t)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_ddim_agrees_with_the_chain_in_float64(prediction):
    """The released model's chain, 980, 960, ..., 0, written out in float64."""
    x_T = np.moveaxis(np.load(GOLDEN)["x"], 1, -1)
    a = np.append(np.cumprod(1 - np.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2), 1.0)
    x = x_T.astype(np.float64)
    for t in range(980, -1, -20):
        now, after = a[t], a[t - 20] if t else 1.0
        output = 0.3 * x + 0.05 * np.sin(t / 100)
        if prediction == "epsilon":
            eps, x0 = output, (x - np.sqrt(1 - now) * output) / np.sqrt(now)
        else:
            eps = np.sqrt(now) * output + np.sqrt(1 - now) * x
            x0 = np.sqrt(now) * x - np.sqrt(1 - now) * output
        x = np.sqrt(after) * x0 + np.sqrt(1 - after) * eps
    result = ddim(smooth, SCHEDULE, x_T, keys_of(0), num_steps=50, prediction=prediction)
    np.testing.assert_allclose(result, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())


def test_ddim_single_steps():
    x, output, noise = jnp.ones((1, 1)), jnp.full((1, 1), 0.5), jnp.zeros((1, 1))
    np.testing.assert_allclose(to_x0_and_noise(SCHEDULE, "epsilon", output, x, 980)[0], 41.8298759, rtol=3e-6)
    np.testing.assert_allclose(ddim_step(SCHEDULE, "epsilon", output, x, 980, 960, noise), 1.10978699, rtol=3e-6)
    np.testing.assert_allclose(ddim_step(SCHEDULE, "epsilon", output, x, 0, -20, noise), 0.98137128, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_oracle_recovers_x0_ddim(prediction, eta):
    keys = keys_of(1, 2)
    x0 = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    result = ddim(
        oracle(x0, prediction),
        SCHEDULE,
        initial_noise(keys, SHAPE),
        keys,
        num_steps=25,
        eta=eta,
        prediction=prediction,
    )
    np.testing.assert_allclose(result, x0, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [None, 40])
def test_oracle_recovers_x0_ddpm(prediction, num_steps):
    keys = keys_of(1, 2)
    x0 = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    result = ddpm(
        oracle(x0, prediction),
        SCHEDULE,
        initial_noise(keys, SHAPE),
        keys,
        prediction=prediction,
        num_steps=num_steps,
    )
    np.testing.assert_allclose(result, x0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1000, 30])
def test_ddpm_is_ddim_with_eta_one(num_steps):
    """Song et al. 2021, section 4.1; a posterior with the wrong stride fails here for 30 steps."""
    keys = keys_of(3)
    x_T = initial_noise(keys, SHAPE)
    ancestral = ddpm(smooth, SCHEDULE, x_T, keys, num_steps=num_steps)
    implicit = ddim(smooth, SCHEDULE, x_T, keys, num_steps=num_steps, eta=1.0)
    np.testing.assert_allclose(ancestral, implicit, rtol=1e-3, atol=1e-4 * np.abs(implicit).max())


def gaussian_denoiser(variance):
    """The ideal denoiser of Gaussian data of mean 0: linear, so that a chain's variance is known in
    float64."""

    def ideal(x, t):
        a = jnp.asarray(SCHEDULE.alphas_cumprod)[t][:, None]
        return jnp.sqrt(1 - a) * x / (a * variance + 1 - a)

    return ideal


def test_ddim_scales_gaussian_noise_to_the_data():
    """Without noise the chain multiplies by sqrt(0.24657) in 1000 steps (tends to sqrt(0.25) with finer
    ones)."""
    keys = keys_of(5)
    result = ddim(gaussian_denoiser(0.25), SCHEDULE, jnp.ones((1, 1)), keys, num_steps=1000)
    np.testing.assert_allclose(result**2, 0.24657, rtol=2e-4)


def test_ddpm_keeps_the_distribution_of_gaussian_data():
    """The variance of the samples is that carried through the 1000 linear steps in float64, 0.24282."""
    keys = jax.random.split(jax.random.key(0), 64)
    x_T = initial_noise(keys, (256,))
    result = jax.jit(lambda x: ddpm(gaussian_denoiser(0.25), SCHEDULE, x, keys))(x_T)
    # 16384 draws: the standard error of the variance is 1.1 %.
    np.testing.assert_allclose(np.var(result), 0.24282, rtol=0.03)


def test_one_ancestral_step_draws_from_the_posterior():
    """Mean and variance of Bayes' rule for Gaussians, with a stride of 20 steps, in float64."""
    x0, x_t, t, s = 0.7, -0.4, 500, 480
    a = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)
    ratio = a[t] / a[s]
    precision = ratio / (1 - ratio) + 1 / (1 - a[s])
    mean = (np.sqrt(ratio) * x_t / (1 - ratio) + np.sqrt(a[s]) * x0 / (1 - a[s])) / precision
    args = (SCHEDULE, "x0", jnp.full((1, 1), x0), jnp.full((1, 1), x_t), t, s)
    np.testing.assert_allclose(ddpm_step(*args, jnp.zeros((1, 1)))[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(ddpm_step(*args, jnp.ones((1, 1)))[0, 0] - mean, np.sqrt(1 / precision), rtol=1e-5)


def test_eta_zero_ignores_the_keys_and_eta_one_does_not():
    x_T = initial_noise(keys_of(7), SHAPE)

    @jax.jit
    def sample(keys, eta):
        return ddim(smooth, SCHEDULE, x_T, keys, num_steps=10, eta=eta)

    np.testing.assert_array_equal(sample(keys_of(0), 0.0), sample(keys_of(1), 0.0))
    assert not np.allclose(sample(keys_of(0), 1.0), sample(keys_of(1), 1.0))
    np.testing.assert_array_equal(sample(keys_of(0), 1.0), sample(keys_of(0), 1.0))


def test_one_program_for_every_eta_and_any_parameters():
    traces = []

    @jax.jit
    def sample(params, x_T, keys, eta):
        traces.append(None)
        return ddim(lambda x, t: params * x, SCHEDULE, x_T, keys, num_steps=5, eta=eta)

    keys = keys_of(7)
    x_T = initial_noise(keys, SHAPE)
    results = [np.asarray(sample(p, x_T, keys, eta)) for p, eta in [(0.3, 0.0), (0.3, 0.5), (0.2, 1.0)]]
    assert len(traces) == 1
    assert not np.allclose(results[0], results[1]) and not np.allclose(results[1], results[2])


def test_a_sample_does_not_depend_on_its_batch():
    @jax.jit
    def sample(keys):
        return ddim(smooth, SCHEDULE, initial_noise(keys, SHAPE), keys, num_steps=10, eta=1.0)

    together = np.asarray(sample(keys_of(1, 2, 3)))
    np.testing.assert_array_equal(np.asarray(sample(keys_of(3, 9, 1)))[[2, 0]], together[[0, 2]])
    np.testing.assert_array_equal(np.asarray(sample(keys_of(2)))[0], together[1])


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_scan_equals_a_loop_of_steps(name):
    num_steps, eta = 6, 0.7
    keys = keys_of(1, 2)
    x_T = initial_noise(keys, SHAPE)
    x = x_T
    timesteps = ddim_timesteps(1000, num_steps)
    for index, t in enumerate(timesteps):
        output = smooth(x, jnp.full((2,), t))
        args = (SCHEDULE, "velocity", output, x, t, t - 1000 // num_steps, step_noise(keys, index, SHAPE))
        x = ddim_step(*args, eta) if name == "ddim" else ddpm_step(*args)
    if name == "ddim":
        scanned = ddim(smooth, SCHEDULE, x_T, keys, num_steps=num_steps, eta=eta, prediction="velocity")
    else:
        scanned = ddpm(smooth, SCHEDULE, x_T, keys, num_steps=num_steps, prediction="velocity")
    # Compiled as one program the same arithmetic may be fused; a rounding a step is all that may differ.
    np.testing.assert_allclose(scanned, x, rtol=1e-5, atol=1e-6)


def test_noise_is_named_by_key_and_step():
    keys = keys_of(1, 2)
    expected = jax.random.normal(jax.random.fold_in(jax.random.key(2), 4), SHAPE)
    np.testing.assert_array_equal(step_noise(keys, 4, SHAPE)[1], expected)
    draws = [
        np.asarray(initial_noise(keys, SHAPE)),
        *(np.asarray(step_noise(keys, i, SHAPE)) for i in range(3)),
    ]
    flat = np.stack([draw[b].ravel() for draw in draws for b in range(2)])
    assert len(np.unique(flat[:, 0])) == len(flat)
    assert draws[0].shape == (2, *SHAPE) and draws[0].dtype == np.float32


def test_state_stays_float32_for_a_low_precision_network():
    keys = keys_of(1)
    x_T = initial_noise(keys, SHAPE).astype(jnp.bfloat16)
    result = ddim(lambda x, t: (0.3 * x).astype(jnp.bfloat16), SCHEDULE, x_T, keys, num_steps=5)
    assert result.dtype == jnp.float32


def test_mistakes_are_explained():
    keys = keys_of(1)
    x_T = initial_noise(keys, SHAPE)
    with pytest.raises(UserError, match="epsilon, velocity, x0"):
        ddim(smooth, SCHEDULE, x_T, keys, num_steps=5, prediction="v")
    with pytest.raises(UserError, match="between 1 and the 1000"):
        ddpm(smooth, SCHEDULE, x_T, keys, num_steps=2000)
