"""Samplers against reference chains, against an oracle, and against their own promises."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.objectives import PREDICTIONS, denoiser, target, to_x0_and_noise
from brainldm.diffusion.samplers import ddim, ddpm, dpmpp_2m, heun, initial_noise, step_noise
from brainldm.diffusion.schedule import SPACINGS, Chain, alpha_bar, chain_at_log_snr, make_chain, make_schedule
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

    def network(x, t):
        t = t.astype(int)
        _, noise = to_x0_and_noise("x0", x0, x, *alpha_bar(SCHEDULE, t, x.ndim))
        return target(SCHEDULE, prediction, x0, noise, t)

    return network


def sample(network, x_T, keys, num_steps, *, sampler=ddim, prediction="epsilon", spacing="leading", **options):
    """A whole chain of one of the samplers."""
    chain = make_chain(SCHEDULE, num_steps, spacing)
    denoise = denoiser(network, chain, prediction)
    if sampler in (dpmpp_2m, heun):
        return sampler(denoise, chain, x_T)
    return sampler(denoise, chain, x_T, lambda i: step_noise(keys, i, x_T.shape[1:]), **options)


def one_step(sampler, prediction, output, x, t, t_next, noise=None, **options):
    """A single step between two time steps, t_next < 0 standing for x_0, where the network says `output`."""
    chain = Chain(jnp.array([t]), *alpha_bar(SCHEDULE, jnp.stack([jnp.asarray(t), jnp.asarray(t_next)])))
    return sampler(denoiser(lambda x, t: output, chain, prediction), chain, x, lambda i: noise, **options)


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
        return one_step(ddim, prediction, smooth(x, jnp.full((1,), t)), x, t, t - 1000 // num_steps)

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
    result = sample(smooth, x_T, keys_of(0), 50, prediction=prediction)
    np.testing.assert_allclose(result, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())


def test_ddim_single_steps():
    x, output = jnp.ones((1, 1)), jnp.full((1, 1), 0.5)
    found, _ = to_x0_and_noise("epsilon", output, x, *alpha_bar(SCHEDULE, 980))
    np.testing.assert_allclose(found, 41.8298759, rtol=3e-6)
    np.testing.assert_allclose(one_step(ddim, "epsilon", output, x, 980, 960), 1.10978699, rtol=3e-6)
    np.testing.assert_allclose(one_step(ddim, "epsilon", output, x, 0, -20), 0.98137128, rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_oracle_recovers_x0_ddim(prediction, eta):
    keys = keys_of(1, 2)
    x0 = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    result = sample(oracle(x0, prediction), initial_noise(keys, SHAPE), keys, 25, eta=eta, prediction=prediction)
    np.testing.assert_allclose(result, x0, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1000, 40])
def test_oracle_recovers_x0_ddpm(prediction, num_steps):
    keys = keys_of(1, 2)
    x0 = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    x_T = initial_noise(keys, SHAPE)
    result = sample(oracle(x0, prediction), x_T, keys, num_steps, sampler=ddpm, prediction=prediction)
    np.testing.assert_allclose(result, x0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1000, 30])
def test_ddpm_is_ddim_with_eta_one(num_steps):
    """Song et al. 2021, section 4.1; a posterior with the wrong stride fails here for 30 steps."""
    keys = keys_of(3)
    x_T = initial_noise(keys, SHAPE)
    ancestral = sample(smooth, x_T, keys, num_steps, sampler=ddpm)
    implicit = sample(smooth, x_T, keys, num_steps, eta=1.0)
    np.testing.assert_allclose(ancestral, implicit, rtol=1e-3, atol=1e-4 * np.abs(implicit).max())


def gaussian_denoiser(variance):
    """The ideal denoiser of Gaussian data of mean 0: linear, so that a chain's variance is known in
    float64."""

    def ideal(x, t):
        a = jnp.asarray(SCHEDULE.alphas_cumprod)[t.astype(int)][:, None]
        return jnp.sqrt(1 - a) * x / (a * variance + 1 - a)

    return ideal


def test_ddim_scales_gaussian_noise_to_the_data():
    """Without noise the chain multiplies by sqrt(0.24657) in 1000 steps (tends to sqrt(0.25) with finer
    ones)."""
    keys = keys_of(5)
    result = sample(gaussian_denoiser(0.25), jnp.ones((1, 1)), keys, 1000)
    np.testing.assert_allclose(result**2, 0.24657, rtol=2e-4)


def test_ddpm_keeps_the_distribution_of_gaussian_data():
    """The variance of the samples is that carried through the 1000 linear steps in float64, 0.24282."""
    keys = jax.random.split(jax.random.key(0), 64)
    x_T = initial_noise(keys, (256,))
    result = jax.jit(lambda x: sample(gaussian_denoiser(0.25), x, keys, 1000, sampler=ddpm))(x_T)
    # 16384 draws: the standard error of the variance is 1.1 %.
    np.testing.assert_allclose(np.var(result), 0.24282, rtol=0.03)


def test_one_ancestral_step_draws_from_the_posterior():
    """Mean and variance of Bayes' rule for Gaussians, with a stride of 20 steps, in float64."""
    x0, x_t, t, s = 0.7, -0.4, 500, 480
    a = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)
    ratio = a[t] / a[s]
    precision = ratio / (1 - ratio) + 1 / (1 - a[s])
    mean = (np.sqrt(ratio) * x_t / (1 - ratio) + np.sqrt(a[s]) * x0 / (1 - a[s])) / precision
    args = (ddpm, "x0", jnp.full((1, 1), x0), jnp.full((1, 1), x_t), t, s)
    np.testing.assert_allclose(one_step(*args, jnp.zeros((1, 1)))[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(one_step(*args, jnp.ones((1, 1)))[0, 0] - mean, np.sqrt(1 / precision), rtol=1e-5)


def test_noise_is_what_jax_draws_in_the_shape_of_a_sample():
    """It is drawn as rows; datasets name a seed and rely on the numbers."""
    keys = keys_of(7, 8)
    expected = [jax.random.normal(jax.random.fold_in(key, 3), SHAPE) for key in keys]
    np.testing.assert_array_equal(step_noise(keys, 3, SHAPE), expected)


def test_eta_zero_ignores_the_keys_and_eta_one_does_not():
    x_T = initial_noise(keys_of(7), SHAPE)

    @jax.jit
    def with_eta(keys, eta):
        return sample(smooth, x_T, keys, 10, eta=eta)

    np.testing.assert_array_equal(with_eta(keys_of(0), 0.0), with_eta(keys_of(1), 0.0))
    assert not np.allclose(with_eta(keys_of(0), 1.0), with_eta(keys_of(1), 1.0))
    np.testing.assert_array_equal(with_eta(keys_of(0), 1.0), with_eta(keys_of(0), 1.0))


def test_an_eta_that_is_known_to_be_zero_draws_no_noise_and_gives_the_same_numbers():
    x_T = initial_noise(keys_of(7), SHAPE)
    traced = jax.jit(lambda eta: sample(smooth, x_T, keys_of(0), 10, eta=eta))(0.0)
    chain = make_chain(SCHEDULE, 10)

    def no_noise(i):
        raise AssertionError("noise was drawn")

    known = jax.jit(lambda x: ddim(denoiser(smooth, chain, "epsilon"), chain, x, no_noise))(x_T)
    np.testing.assert_array_equal(known, traced)


def test_one_program_for_every_eta_and_any_parameters():
    traces = []

    @jax.jit
    def with_params(params, x_T, keys, eta):
        traces.append(None)
        return sample(lambda x, t: params * x, x_T, keys, 5, eta=eta)

    keys = keys_of(7)
    x_T = initial_noise(keys, SHAPE)
    results = [np.asarray(with_params(p, x_T, keys, eta)) for p, eta in [(0.3, 0.0), (0.3, 0.5), (0.2, 1.0)]]
    assert len(traces) == 1
    assert not np.allclose(results[0], results[1]) and not np.allclose(results[1], results[2])


def test_a_sample_does_not_depend_on_its_batch():
    @jax.jit
    def of_keys(keys):
        return sample(smooth, initial_noise(keys, SHAPE), keys, 10, eta=1.0)

    together = np.asarray(of_keys(keys_of(1, 2, 3)))
    np.testing.assert_array_equal(np.asarray(of_keys(keys_of(3, 9, 1)))[[2, 0]], together[[0, 2]])
    np.testing.assert_array_equal(np.asarray(of_keys(keys_of(2)))[0], together[1])


@pytest.mark.parametrize("sampler, options", [(ddim, {"eta": 0.7}), (ddpm, {})])
def test_scan_equals_a_loop_of_steps(sampler, options):
    keys = keys_of(1, 2)
    x_T = initial_noise(keys, SHAPE)
    x = x_T
    for index, t in enumerate(range(830, -1, -166)):
        noise = step_noise(keys, index, SHAPE)
        x = one_step(sampler, "velocity", smooth(x, jnp.full((2,), t)), x, t, t - 166, noise, **options)
    scanned = sample(smooth, x_T, keys, 6, sampler=sampler, prediction="velocity", **options)
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
    for sampler in (ddim, ddpm, dpmpp_2m, heun):
        result = sample(lambda x, t: (0.3 * x).astype(jnp.bfloat16), x_T, keys, 5, sampler=sampler)
        assert result.dtype == jnp.float32


def test_mistakes_are_explained():
    keys = keys_of(1)
    x_T = initial_noise(keys, SHAPE)
    with pytest.raises(UserError, match="epsilon, velocity, x0"):
        sample(smooth, x_T, keys, 5, prediction="v")
    with pytest.raises(UserError, match="between 1 and the 1000"):
        sample(smooth, x_T, keys, 2000, sampler=ddpm)
    with pytest.raises(UserError, match="leading, trailing, karras, log_snr"):
        sample(smooth, x_T, keys, 5, spacing="linear")


# Multistep solvers and other spacings


def exact_gaussian(chain, variance):
    """The denoiser of Gaussian data of mean 0 at any noise level: x_0 = sqrt(a) v x / (a v + b)."""

    def denoise(x, i):
        a, b = jnp.asarray(chain.a)[i], jnp.asarray(chain.b)[i]
        scale = a * variance + b
        return jnp.sqrt(a) * variance / scale * x, jnp.sqrt(b) / scale * x

    return denoise


def error_on_gaussian_data(sampler, num_steps):
    """Relative error at the end of a chain between two noise levels, where the probability flow of Gaussian data
    is x sqrt(a v + b) up to a constant."""
    variance = 0.25
    levels = np.linspace(-3.0, 3.0, num_steps + 1)
    chain = chain_at_log_snr(SCHEDULE, levels)
    chain = Chain(chain.t[:-1], chain.a[:-1], chain.b[:-1])
    a, b = (x.astype(np.float64) for x in (chain.a[[0, -1]], chain.b[[0, -1]]))
    spread = np.sqrt(a * variance + b)
    found = sampler(exact_gaussian(chain, variance), chain, jnp.ones((1, 1)))
    return abs(float(found[0, 0]) / (spread[1] / spread[0]) - 1)


def test_orders_of_convergence_on_gaussian_data():
    """Twice the steps: a quarter of the error for DPM-Solver++(2M) and Heun, half of it for DDIM (Lu et al. 2022)."""
    second = [error_on_gaussian_data(dpmpp_2m, n) for n in (20, 40, 80)]
    heuns = [error_on_gaussian_data(heun, n) for n in (20, 40, 80)]
    first = [error_on_gaussian_data(lambda d, c, x: ddim(d, c, x, None), n) for n in (20, 40, 80)]
    orders = [np.log2(np.divide(errors[:-1], errors[1:])) for errors in (second, first, heuns)]
    np.testing.assert_allclose(orders[0], 2.0, atol=0.1)
    np.testing.assert_allclose(orders[1], 1.0, atol=0.1)
    np.testing.assert_allclose(orders[2], 2.0, atol=0.25)
    assert second[-1] < 0.1 * first[-1]


def test_the_first_order_solver_is_ddim():
    """DPM-Solver++ of first order is DDIM (Lu et al. 2022, section 4); one step of 2M is of first order."""
    x = initial_noise(keys_of(1), SHAPE)
    output = 0.3 * x
    chain = Chain(jnp.array([500]), *alpha_bar(SCHEDULE, jnp.array([500, 300])))
    denoise = denoiser(lambda x, t: output, chain, "epsilon")
    np.testing.assert_allclose(dpmpp_2m(denoise, chain, x), ddim(denoise, chain, x, None), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", [ddim, ddpm, dpmpp_2m, heun])
def test_every_sampler_is_exact_on_a_point_mass_over_every_spacing(sampler, spacing):
    x0 = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    keys = keys_of(1, 2)
    chain = make_chain(SCHEDULE, 7, spacing)

    def denoise(x, i):
        a, b = jnp.asarray(chain.a)[i], jnp.asarray(chain.b)[i]
        return x0, (x - jnp.sqrt(a) * x0) / jnp.sqrt(b)

    x_T = initial_noise(keys, SHAPE)
    if sampler in (dpmpp_2m, heun):
        result = sampler(denoise, chain, x_T)
    else:
        result = sampler(denoise, chain, x_T, lambda i: step_noise(keys, i, SHAPE))
    np.testing.assert_allclose(result, x0, atol=1e-5)


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_twenty_steps_of_the_multistep_solver_reach_gaussian_data(spacing):
    """20 steps of DPM-Solver++(2M) are a few percent from the limit of many, 20 of DDIM over three times that."""
    variance = 0.25

    def chain_to_the_end(sampler, num_steps, spacing):
        chain = make_chain(SCHEDULE, num_steps, spacing)
        return float(sampler(exact_gaussian(chain, variance), chain, jnp.ones((1, 1)))[0, 0])

    plain = lambda d, c, x: ddim(d, c, x, None)  # noqa: E731
    exact = chain_to_the_end(dpmpp_2m, 1000, spacing)
    multistep = abs(chain_to_the_end(dpmpp_2m, 20, spacing) - exact)
    assert multistep < 0.04 * exact and multistep < 0.3 * abs(chain_to_the_end(plain, 20, spacing) - exact)


# Flow matching


def test_ddim_is_euler_on_the_straight_path():
    """In z = x sqrt((1 - s)^2 + s^2), a step of DDIM is z + (s_next - s) u for whatever u the network gives."""
    schedule = make_schedule("rectified_flow")
    chain = make_chain(schedule, 8, "trailing")
    s = np.append((chain.t.astype(np.float64) + 0.5) / 1000, 0.0)
    path = np.sqrt((1 - s) ** 2 + s**2)
    x = np.asarray(initial_noise(keys_of(1, 2), SHAPE))
    z = x * path[0]
    for i in range(8):
        z = z + (s[i + 1] - s[i]) * np.asarray(smooth(jnp.asarray(z / path[i], jnp.float32), jnp.full(2, chain.t[i])))
    found = ddim(denoiser(smooth, chain, "flow"), chain, x, None)
    np.testing.assert_allclose(found, z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler, tolerance", [(lambda d, c, x: ddim(d, c, x, None), 0.03), (heun, 0.004)])
def test_the_flow_of_gaussian_data(sampler, tolerance):
    """The flow multiplies by sqrt(v) from noise to data of variance v; 50 steps over the straight path get there."""
    chain = make_chain(make_schedule("rectified_flow"), 50, "trailing")
    found = float(sampler(exact_gaussian(chain, 0.25), chain, jnp.ones((1, 1)))[0, 0])
    assert found == pytest.approx(0.5, rel=tolerance)
