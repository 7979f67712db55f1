"""Samplers: from noise to a clean latent, each a plain function of a denoise function and a schedule.

`denoise(x_t [B, ...] float32, t [B] int32)` returns what the network predicts; wrap it in
`brainldm.diffusion.guidance` for classifier-free guidance. Each sampler is one `lax.scan`, so the compiled
program does not grow with the number of steps. Call it inside `jax.jit` and pass the network's parameters
to the jitted function as an argument; a closure over concrete parameters would bake them into the program:

    @jax.jit
    def sample(params, keys, conditions, eta):
        def denoise(x, t):
            return unet.apply({"params": params}, x, t, conditions)
        return ddim(denoise, schedule, initial_noise(keys, shape), keys, num_steps=50, eta=eta)

Random numbers belong to samples, not to batches: `keys` is [B] typed keys (threefry, the default of
`jax.random.key`), and sample b uses only keys[b], so it does not matter which batch or slot it is drawn in.
Step i draws from fold_in(keys[b], i). Nothing is clipped: latents have no known range.
"""

import jax
import jax.numpy as jnp

from brainldm.diffusion.objectives import Denoise, check_prediction, to_x0_and_noise
from brainldm.diffusion.schedule import Schedule, alpha_bar, ddim_timesteps

# Folded into a sample's key for x_T: past the index of any step, so that no two draws share a key.
_INITIAL_NOISE = 2**31 - 1


def _normal(keys: jax.Array, index: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32))(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_T: standard normal [B, *shape] float32, one key for each sample (keys: [B] typed keys)."""
    return _normal(keys, _INITIAL_NOISE, tuple(shape))


def step_noise(keys: jax.Array, step: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise added in step number `step` (0 for the first): standard normal [B, *shape] float32."""
    return _normal(keys, step, tuple(shape))


def _stride_beta(schedule: Schedule, t: jax.Array, t_prev: jax.Array, ndim: int) -> jax.Array:
    """1 - a_t / a_prev: the beta of one step from t_prev to t.

    The difference is taken between whichever of a and 1 - a is the smaller, where float32 still resolves it.
    """
    signal, noise = alpha_bar(schedule, t, ndim)
    signal_prev, noise_prev = alpha_bar(schedule, t_prev, ndim)
    return jnp.where(signal > 0.5, noise - noise_prev, signal_prev - signal) / signal_prev


def _posterior_variance(schedule: Schedule, t: jax.Array, t_prev: jax.Array, ndim: int) -> jax.Array:
    """Variance of q(x_prev | x_t, x_0): (1 - a_prev) / (1 - a_t) (1 - a_t / a_prev), 0 where t_prev < 0."""
    _, noise = alpha_bar(schedule, t, ndim)
    _, noise_prev = alpha_bar(schedule, t_prev, ndim)
    return noise_prev / noise * _stride_beta(schedule, t, t_prev, ndim)


def ddim_step(
    schedule: Schedule,
    prediction: str,
    output: jax.Array,
    x: jax.Array,
    t: jax.Array,
    t_prev: jax.Array,
    noise: jax.Array,
    eta: float | jax.Array = 0.0,
) -> jax.Array:
    """One step x_t -> x_prev of DDIM (Song et al. 2021, eq. 12 and 16).

    output: what the network predicts at (x, t); noise: standard normal like x, used where eta > 0;
    t_prev < 0 stands for x_0. Returns float32 like x.
    """
    x0, eps = to_x0_and_noise(schedule, prediction, output, x, t)
    signal_prev, noise_prev = alpha_bar(schedule, t_prev, x.ndim)
    sigma = jnp.asarray(eta, jnp.float32) * jnp.sqrt(_posterior_variance(schedule, t, t_prev, x.ndim))
    direction = jnp.sqrt(jnp.maximum(noise_prev - sigma**2, 0.0))
    return jnp.sqrt(signal_prev) * x0 + direction * eps + sigma * noise


def ddpm_step(
    schedule: Schedule,
    prediction: str,
    output: jax.Array,
    x: jax.Array,
    t: jax.Array,
    t_prev: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """One ancestral step x_t -> x_prev: a draw from q(x_prev | x_t, x_0) (Ho et al. 2020, eq. 6 and 7).

    The posterior is that of the stride t - t_prev, with beta = 1 - a_t / a_prev, so it holds for shortened
    chains; its variance is the smaller one of the paper's two ("fixed small"). Arguments as for
    `ddim_step`.
    """
    x0, _ = to_x0_and_noise(schedule, prediction, output, x, t)
    signal, noise_var = alpha_bar(schedule, t, x.ndim)
    signal_prev, noise_var_prev = alpha_bar(schedule, t_prev, x.ndim)
    beta = _stride_beta(schedule, t, t_prev, x.ndim)
    x0_share = jnp.sqrt(signal_prev) * beta / noise_var
    x_share = jnp.sqrt(signal / signal_prev) * noise_var_prev / noise_var
    mean = x0_share * x0 + x_share * x.astype(jnp.float32)
    return mean + jnp.sqrt(_posterior_variance(schedule, t, t_prev, x.ndim)) * noise


def _run(denoise: Denoise, schedule: Schedule, x_T: jax.Array, keys: jax.Array, num_steps: int, step) -> jax.Array:
    """Scans `step(output, x, t, t_prev, noise)` over the time steps of a chain of `num_steps`."""
    timesteps = ddim_timesteps(schedule.num_train_steps, num_steps)
    batch, sample_shape = x_T.shape[0], x_T.shape[1:]

    def body(x, now):
        index, t, t_prev = now
        output = denoise(x, jnp.full((batch,), t, jnp.int32))
        return step(output, x, t, t_prev, step_noise(keys, index, sample_shape)), None

    stride = schedule.num_train_steps // num_steps
    steps = (jnp.arange(num_steps, dtype=jnp.int32), jnp.asarray(timesteps), jnp.asarray(timesteps - stride))
    x, _ = jax.lax.scan(body, x_T.astype(jnp.float32), steps)
    return x


def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x_T: jax.Array,
    keys: jax.Array,
    *,
    num_steps: int,
    eta: float | jax.Array = 0.0,
    prediction: str = "epsilon",
) -> jax.Array:
    """DDIM sampling (Song et al. 2021): x_T [B, ...] -> x_0 [B, ...] float32 in `num_steps` evaluations.

    eta 0 is the deterministic sampler, 1 the ancestral one; it may be traced, so one compiled program
    serves all values. Raises UserError for an unknown prediction type or an impossible number of steps.
    """
    check_prediction(prediction)

    def step(output, x, t, t_prev, noise):
        return ddim_step(schedule, prediction, output, x, t, t_prev, noise, eta)

    return _run(denoise, schedule, x_T, keys, num_steps, step)


def ddpm(
    denoise: Denoise,
    schedule: Schedule,
    x_T: jax.Array,
    keys: jax.Array,
    *,
    prediction: str = "epsilon",
    num_steps: int | None = None,
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x_T [B, ...] -> x_0 [B, ...] float32.

    num_steps: None for all T steps of the schedule; fewer for a shortened chain with the posterior of its
    stride. Raises UserError for an unknown prediction type or an impossible number of steps.
    """
    check_prediction(prediction)

    def step(output, x, t, t_prev, noise):
        return ddpm_step(schedule, prediction, output, x, t, t_prev, noise)

    return _run(denoise, schedule, x_T, keys, schedule.num_train_steps if num_steps is None else num_steps, step)
