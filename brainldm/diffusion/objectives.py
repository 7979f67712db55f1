"""What the network is trained to predict, and the loss.

Symbols: x_0 a clean latent, eps the noise, a = alpha_bar_t, b = 1 - a, x_t = sqrt(a) x_0 + sqrt(b) eps. Arrays are
[B, ...] with the batch first; t is [B] or a scalar integer. All arithmetic here is float32 whatever comes in.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from brainldm.diffusion.schedule import Chain, Schedule, alpha_bar
from brainldm.runtime.errors import UserError

PREDICTIONS = ("epsilon", "velocity", "x0", "flow")

TIMES = ("uniform", "logit_normal")
"""How the time steps of training are drawn, see `draw_times`."""

# network(x_t [B, ...], t [B], or a pytree of arrays [B, ...] that stands for it) -> what it predicts [B, ...]
Network = Callable[[jax.Array, Any], jax.Array]

# denoise(x [B, ...], i) -> (x_0, eps) that the network believes in at level i of a chain, [B, ...] float32 each
Denoise = Callable[[jax.Array, int | jax.Array], tuple[jax.Array, jax.Array]]


def check_prediction(prediction: str) -> None:
    """Raises UserError naming the prediction types unless `prediction` is one of them."""
    if prediction not in PREDICTIONS:
        raise UserError(f"Unknown prediction type {prediction!r}: the types are {', '.join(PREDICTIONS)}.")


def add_noise(schedule: Schedule, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t = sqrt(a) x_0 + sqrt(b) eps (Ho et al. 2020, eq. 4), float32."""
    a, b = alpha_bar(schedule, t, x0.ndim)
    return jnp.sqrt(a) * x0.astype(jnp.float32) + jnp.sqrt(b) * noise.astype(jnp.float32)


def target(schedule: Schedule, prediction: str, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """What the network should output, float32.

    "epsilon": the noise. "x0": the clean latent. "velocity": v = sqrt(a) eps - sqrt(b) x_0
    (Salimans and Ho 2022, appendix D). "flow": u = eps - x_0, the direction of the straight path between the two
    (Liu et al. 2022, eq. 1). Raises UserError for another prediction type.
    """
    check_prediction(prediction)
    x0, noise = x0.astype(jnp.float32), noise.astype(jnp.float32)
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "flow":
        return noise - x0
    a, b = alpha_bar(schedule, t, x0.ndim)
    return jnp.sqrt(a) * noise - jnp.sqrt(b) * x0


def to_x0_and_noise(
    prediction: str, output: jax.Array, x_t: jax.Array, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The (x_0, eps) that the network's output stands for at x_t, float32. Nothing is clipped.

    a, b: alpha_bar and 1 - alpha_bar of x_t, scalars or shaped to broadcast against it. Raises UserError for an unknown
    prediction type.
    """
    check_prediction(prediction)
    alpha, sigma = jnp.sqrt(a), jnp.sqrt(b)
    x_t, output = x_t.astype(jnp.float32), output.astype(jnp.float32)
    if prediction == "epsilon":
        return (x_t - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x_t - alpha * output) / sigma
    if prediction == "flow":
        x0 = (x_t - sigma * output) / (alpha + sigma)
        return x0, x0 + output
    return alpha * x_t - sigma * output, alpha * output + sigma * x_t


def denoiser(network: Network, chain: Chain, prediction: str, times: Any = None) -> Denoise:
    """What a sampler calls: the network at the levels of a chain, its output read as (x_0, eps).

    times: what the network gets in place of the time steps of the chain, a pytree of arrays [n, ...], such as their
    embeddings. Raises UserError for an unknown prediction type.
    """
    check_prediction(prediction)
    t, a, b = map(jnp.asarray, (chain.t, chain.a, chain.b))
    times = t if times is None else times

    def denoise(x: jax.Array, i: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.tree.map(lambda steps: jnp.broadcast_to(steps[i], (x.shape[0], *steps.shape[1:])), times)
        output = network(x, rows)
        return to_x0_and_noise(prediction, output, x, a[i], b[i])

    return denoise


def min_snr_weight(schedule: Schedule, prediction: str, t: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """The Min-SNR-gamma weight of the squared error (Hang et al. 2023, eq. 8 and section 3.4), shape of t,
    float32.

    With SNR = a / b, an error e in x_0 is an error of sqrt(SNR) e in eps, of sqrt(SNR + 1) e in v and of
    (sqrt(SNR) + 1) e in u, so the weight min(SNR, gamma) of an x_0 loss becomes min(SNR, gamma) / SNR for epsilon,
    min(SNR, gamma) / (SNR + 1) for velocity and min(SNR, gamma) / (sqrt(SNR) + 1)^2 for flow. Raises UserError for an
    unknown prediction type.
    """
    check_prediction(prediction)
    a, b = alpha_bar(schedule, t)
    snr = a / b
    clipped = jnp.minimum(snr, jnp.asarray(gamma, jnp.float32))
    if prediction == "epsilon":
        return clipped / snr
    if prediction == "velocity":
        return clipped / (snr + 1.0)
    if prediction == "flow":
        return clipped / jnp.square(jnp.sqrt(snr) + 1.0)
    return clipped


def diffusion_loss(
    schedule: Schedule,
    prediction: str,
    network: Network,
    x0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    min_snr_gamma: float | jax.Array | None = None,
) -> jax.Array:
    """The squared error of the prediction for each sample, mean over all axes but the batch (Ho et al.
    2020, eq. 14).

    x0, noise: [B, ...]; t: [B] integers in 0 ... T - 1; `network(x_t, t)` returns what it predicts.
    min_snr_gamma: weight each sample by `min_snr_weight` (5 is the paper's choice); None weights all t alike.
    Returns [B] float32.
    """
    output = network(add_noise(schedule, x0, noise, t), t)
    error = jnp.square(output.astype(jnp.float32) - target(schedule, prediction, x0, noise, t))
    loss = jnp.mean(error, axis=tuple(range(1, error.ndim)))
    if min_snr_gamma is None:
        return loss
    return loss * min_snr_weight(schedule, prediction, t, min_snr_gamma)


def draw_times(key: jax.Array, size: int, num_train_steps: int, distribution: str = "uniform") -> jax.Array:
    """Time steps [size], integers in 0 ... T - 1, that a training step looks at.

    "uniform": all alike. "logit_normal": T sigmoid(z) of a standard normal z, more in the middle, where the prediction
    is hardest (Esser et al. 2024, section 3.1). Raises UserError for another distribution.
    """
    if distribution not in TIMES:
        raise UserError(f"Unknown distribution of time steps {distribution!r}: there are {', '.join(TIMES)}.")
    if distribution == "uniform":
        return jax.random.randint(key, (size,), 0, num_train_steps)
    t = num_train_steps * jax.nn.sigmoid(jax.random.normal(key, (size,)))
    return jnp.minimum(t.astype(jnp.int32), num_train_steps - 1)
