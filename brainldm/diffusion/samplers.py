"""Samplers: from noise to a clean latent, each a plain function of a denoiser and a chain of noise levels.

    sampler(denoise, chain, x, noise) -> x_0

`denoise(x, i)` gives (x_0, eps) at level i of the chain (`objectives.denoiser` makes it of a network), x [B, ...] is
x_T, and `noise(i)` the standard normal noise like x of step i. Symbols: a = alpha_bar, b = 1 - a. Each sampler is one
`lax.scan`, so the compiled program does not grow with the number of steps. Call it inside `jax.jit` and pass the
network's parameters to the jitted function as an argument; a closure over concrete parameters would bake them into the
program:

    chain = make_chain(schedule, 50)

    @jax.jit
    def sample(params, keys, c, eta):
        def network(x, t):
            return unet.apply({"params": params}, x, t, c)
        denoise = denoiser(network, chain, "epsilon")
        return ddim(denoise, chain, initial_noise(keys, shape), lambda i: step_noise(keys, i, shape), eta)

Random numbers belong to samples, not to batches: `keys` is [B] typed keys (threefry, the default of
`jax.random.key`), and sample b uses only keys[b], so it does not matter which batch or slot it is drawn in.
Step i draws from fold_in(keys[b], i). Nothing is clipped: latents have no known range.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from brainldm.diffusion.objectives import Denoise
from brainldm.diffusion.schedule import Chain

# noise(i) -> standard normal [B, ...] float32
Noise = Callable[[jax.Array], jax.Array]

# Folded into a sample's key for x_T: past the index of any step, so that no two draws share a key.
_INITIAL_NOISE = 2**31 - 1


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_T: standard normal [B, *shape] float32, one key for each sample (keys: [B] typed keys)."""
    return step_noise(keys, _INITIAL_NOISE, shape)


def step_noise(keys: jax.Array, step: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise added in step number `step` (0 for the first): standard normal [B, *shape] float32."""
    # The same numbers as drawn in their shape: for the indices of its axes XLA compiles ten times as long on a CPU.
    size = math.prod(shape)
    rows = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), (size,), jnp.float32))(keys)
    return rows.reshape(*keys.shape, *shape)


def step_beta(a: jax.Array, b: jax.Array, a_next: jax.Array, b_next: jax.Array) -> jax.Array:
    """1 - a / a_next: the beta of a single step between two noise levels.

    The difference is taken between whichever of a and b is the smaller, where float32 still resolves it.
    """
    return jnp.where(a > 0.5, b - b_next, a_next - a) / a_next


def _steps(chain: Chain) -> tuple[jax.Array, ...]:
    """What a sampler scans: i, a_i, b_i, a_{i+1}, b_{i+1}, each [n]."""
    a, b = jnp.asarray(chain.a), jnp.asarray(chain.b)
    a_next, b_next = (a[1:], b[1:]) if chain.ends is None else map(jnp.asarray, chain.ends)
    return jnp.arange(len(chain.t), dtype=jnp.int32), a[:-1], b[:-1], a_next, b_next


def ddim(denoise: Denoise, chain: Chain, x: jax.Array, noise: Noise, eta: float | jax.Array = 0.0) -> jax.Array:
    """DDIM (Song et al. 2021): x_T [B, ...] -> x_0 [B, ...] float32.

    eta 0 is the deterministic sampler, 1 the ancestral one; it may be traced, so one compiled program serves all
    values. For the Python number 0 no noise is drawn.
    """
    stochastic = not (isinstance(eta, (int, float)) and eta == 0)

    def step(x, level):
        i, a, b, a_next, b_next = level
        x0, eps = denoise(x, i)
        sigma = jnp.asarray(eta, jnp.float32) * jnp.sqrt(b_next / b * step_beta(a, b, a_next, b_next))  # eq. 16
        x = jnp.sqrt(a_next) * x0 + jnp.sqrt(jnp.maximum(b_next - sigma**2, 0.0)) * eps  # eq. 12
        return x + sigma * noise(i) if stochastic else x, None

    return jax.lax.scan(step, x.astype(jnp.float32), _steps(chain))[0]


def ddpm(denoise: Denoise, chain: Chain, x: jax.Array, noise: Noise) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x_T [B, ...] -> x_0 [B, ...] float32.

    Each step draws from q(x_{i+1} | x_i, x_0) of the stride between two levels, with beta = 1 - a_i / a_{i+1}, so it
    holds for shortened chains; the variance is the smaller one of the paper's two ("fixed small").
    """

    def step(x, level):
        i, a, b, a_next, b_next = level
        x0, _ = denoise(x, i)
        beta = step_beta(a, b, a_next, b_next)
        mean = jnp.sqrt(a_next) * beta / b * x0 + jnp.sqrt(a / a_next) * b_next / b * x  # eq. 7
        return mean + jnp.sqrt(b_next / b * beta) * noise(i), None  # eq. 6

    return jax.lax.scan(step, x.astype(jnp.float32), _steps(chain))[0]


def dpmpp_2m(denoise: Denoise, chain: Chain, x: jax.Array) -> jax.Array:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x_T [B, ...] -> x_0 [B, ...] float32, without noise.

    A multistep solver of second order in lambda = log(sqrt(a / b)): the x_0 of the step before makes the slope. The
    first step, and one that ends at b = 0 (lambda infinite), are of first order.
    """

    def step(carry, level):
        x, x0_before, h_before = carry
        i, a, b, a_next, b_next = level
        x0, _ = denoise(x, i)
        h = 0.5 * jnp.log(a_next / a * (b / b_next))  # lambda_{i+1} - lambda_i
        r = h_before / h
        slope = jnp.where((i == 0) | (b_next == 0), 0.0, 1 / (2 * r))
        d = (1 + slope) * x0 - slope * x0_before
        x = jnp.sqrt(b_next / b) * x - jnp.sqrt(a_next) * jnp.expm1(-h) * d
        return (x, x0, h), None

    x = x.astype(jnp.float32)
    return jax.lax.scan(step, (x, jnp.zeros_like(x), jnp.float32(1.0)), _steps(chain))[0][0]


def heun(denoise: Denoise, chain: Chain, x: jax.Array) -> jax.Array:
    """Heun's method of second order (Karras et al. 2022, algorithm 1): x_T [B, ...] -> x_0 [B, ...] float32.

    With s = sqrt(b / a) and y = x / sqrt(a) the way from noise is dy/ds = eps. Each step looks at its end too and takes
    the mean of both directions, 2 n - 1 evaluations for n steps: at s = 0, the end of the last one, there is no noise.
    """
    last = len(chain.t) - 1

    def step(x, level):
        i, a, b, a_next, b_next = level
        s, s_next = jnp.sqrt(b / a), jnp.sqrt(b_next / a_next)
        _, eps = denoise(x, i)
        y = x / jnp.sqrt(a)
        euler = y + (s_next - s) * eps

        def corrected(euler):
            _, eps_next = denoise(jnp.sqrt(a_next) * euler, i + 1)
            return y + (s_next - s) * 0.5 * (eps + eps_next)

        y = jax.lax.cond(i < last, corrected, lambda euler: euler, euler)
        return jnp.sqrt(a_next) * y, None

    return jax.lax.scan(step, x.astype(jnp.float32), _steps(chain))[0]
