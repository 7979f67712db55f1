"""Noise schedules: the tables of a discrete-time diffusion process, and the chains of noise levels that samplers walk.

The tables are computed once in float64 numpy and kept as float32 numpy arrays: 1 - alpha_bar is a table of
its own, because float32 subtraction near alpha_bar = 1 would lose four digits of it. Numpy arrays, not
device arrays, so that a schedule can be made before any device is touched and closed over by a program that
spans several hosts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import shown

SCHEDULE_KINDS = ("scaled_linear", "linear", "cosine", "rectified_flow")

SPACINGS = ("leading", "trailing", "karras", "log_snr", "monai")
"""How a chain spreads its noise levels, see `make_chain`."""

KARRAS_RHO = 7.0  # Karras et al. 2022, table 1

# Nichol and Dhariwal 2021, section 3.2: the offset s of the cosine schedule and the ceiling of its betas.
COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999


class Schedule(NamedTuple):
    """A discrete variance-preserving process x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise.

    A pytree. `alphas_cumprod` is alpha_bar_t and `one_minus_alphas_cumprod` is 1 - alpha_bar_t, both [T]
    float32 for t = 0 ... T - 1; index them with traced steps through `alpha_bar`.
    """

    alphas_cumprod: np.ndarray | jax.Array
    one_minus_alphas_cumprod: np.ndarray | jax.Array

    @property
    def num_train_steps(self) -> int:
        """T, the number of steps the process was discretised into."""
        return self.alphas_cumprod.shape[0]


def make_schedule(
    kind: str = "scaled_linear",
    beta_start: float = 0.0015,
    beta_end: float = 0.0205,
    num_train_steps: int = 1000,
) -> Schedule:
    """Builds the schedule of the given kind; the defaults are those of the released brain LDM.

    "linear": betas evenly spaced (Ho et al. 2020). "scaled_linear": square roots of the betas evenly spaced
    (Rombach et al. 2022). "cosine": alpha_bar follows a squared cosine (Nichol and Dhariwal 2021, eq. 17),
    with the betas clipped to 0.999 and alpha_bar recomputed from them. "rectified_flow": the straight path
    (1 - s) x_0 + s eps of flow matching (Liu et al. 2022, Lipman et al. 2022) at s = (t + 1/2) / T, divided by its
    standard deviation sqrt((1 - s)^2 + s^2), which makes it variance preserving. beta_start and beta_end play no part
    in these two.

    Raises UserError for an unknown kind, betas that are not 0 < beta_start <= beta_end < 1, or no steps.
    """
    if kind not in SCHEDULE_KINDS:
        raise UserError(f"Unknown noise schedule {kind!r}: the schedules are {', '.join(SCHEDULE_KINDS)}.")
    if num_train_steps < 1:
        raise UserError(f"A noise schedule needs at least one training step, not {num_train_steps}.")
    if kind in ("linear", "scaled_linear") and not 0.0 < beta_start <= beta_end < 1.0:
        raise UserError(
            f"A {kind} noise schedule needs 0 < beta_start <= beta_end < 1, not beta_start {beta_start} and "
            f"beta_end {beta_end}."
        )
    if kind == "rectified_flow":
        s = (np.arange(num_train_steps, dtype=np.float64) + 0.5) / num_train_steps
        variance = (1.0 - s) ** 2 + s**2
        return Schedule(((1.0 - s) ** 2 / variance).astype(np.float32), (s**2 / variance).astype(np.float32))
    if kind == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_steps, dtype=np.float64) ** 2
    elif kind == "linear":
        betas = np.linspace(beta_start, beta_end, num_train_steps, dtype=np.float64)
    else:
        position = np.linspace(0.0, 1.0, num_train_steps + 1, dtype=np.float64)
        curve = np.cos((position + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * np.pi / 2) ** 2
        betas = np.clip(1.0 - curve[1:] / curve[:-1], 0.0, COSINE_MAX_BETA)
    alphas_cumprod = np.cumprod(1.0 - betas)
    return Schedule(alphas_cumprod.astype(np.float32), (1.0 - alphas_cumprod).astype(np.float32))


class Chain(NamedTuple):
    """The noise levels that a sampler visits, from the noisiest to the clean latent. A pytree.

    `t` [n] are the time steps that the network is given, descending; they may lie between two steps of the schedule.
    `a` and `b` [n + 1] are alpha_bar and 1 - alpha_bar of the same levels and of the end, 1 and 0 exactly. Step i of a
    sampler leads from level i to level i + 1 or, where there are `ends`, to their alpha_bar and 1 - alpha_bar [n]. All
    float32.
    """

    t: np.ndarray | jax.Array
    a: np.ndarray | jax.Array
    b: np.ndarray | jax.Array
    ends: tuple[np.ndarray | jax.Array, np.ndarray | jax.Array] | None = None


def alpha_bar(schedule: Schedule, t: jax.Array, ndim: int = 0) -> tuple[jax.Array, jax.Array]:
    """alpha_bar_t and 1 - alpha_bar_t, float32, with trailing axes of size 1 up to `ndim` axes.

    t: integer, scalar (result broadcasts against anything) or [B] (result [B, 1, ..., 1]). A negative t
    stands for the end of the process, where alpha_bar is exactly 1.
    """
    t = jnp.asarray(t)
    index = jnp.maximum(t, 0)
    a = jnp.where(t < 0, 1.0, jnp.asarray(schedule.alphas_cumprod, jnp.float32)[index])
    b = jnp.where(t < 0, 0.0, jnp.asarray(schedule.one_minus_alphas_cumprod, jnp.float32)[index])
    if t.ndim:
        shape = t.shape + (1,) * (ndim - t.ndim)
        a, b = a.reshape(shape), b.reshape(shape)
    return a, b


def make_chain(schedule: Schedule, num_steps: int, spacing: str = "leading") -> Chain:
    """The chain of `num_steps` noise levels of a schedule (concrete arrays), from noise to the clean latent.

    "leading": time steps are the multiples of T // num_steps, ending at 0, as for the released brain LDM; for T = 1000
    and 50 steps 980, 960, ..., 0. "trailing": T - 1 and every T / num_steps steps below it (Lin et al. 2024), so that
    few steps begin where training ended: 999, 979, ..., 19. "monai": those of MONAI 1.6 and later, evenly spaced from
    T - 1 to 0 and rounded, from each of which a step still leads T // num_steps down, so that the network is given
    other times than the latent has; only DDIM serves it. The other two go from T - 1 to 0. "karras": with sigma =
    sqrt((1 - a) / a), the levels are evenly spaced in sigma^(1/7) (Karras et al. 2022, eq. 5). "log_snr": evenly spaced
    in lambda = log(sqrt(a / (1 - a))), as DPM-Solver does (Lu et al. 2022). Where a level lies between two steps of the
    schedule, t is interpolated linearly in lambda.

    Raises UserError unless 1 <= num_steps <= T, and for an unknown spacing.
    """
    check_spacing(spacing)
    t = ddim_timesteps(schedule.num_train_steps, num_steps)
    if spacing == "leading":
        return _ended(t, np.asarray(schedule.alphas_cumprod)[t], np.asarray(schedule.one_minus_alphas_cumprod)[t])
    if spacing == "trailing":
        steps = schedule.num_train_steps
        t = np.round(steps - np.arange(num_steps) * (steps / num_steps)).astype(np.int32) - 1
        return _ended(t, np.asarray(schedule.alphas_cumprod)[t], np.asarray(schedule.one_minus_alphas_cumprod)[t])
    if spacing == "monai":
        return _monai(schedule, num_steps)
    log_snr = _log_snr(schedule)
    fraction = np.linspace(0.0, 1.0, num_steps)
    if spacing == "karras":
        root_max, root_min = np.exp(-log_snr[[-1, 0]] / KARRAS_RHO)
        wanted = -KARRAS_RHO * np.log(root_max + fraction * (root_min - root_max))
    else:
        wanted = log_snr[-1] + fraction * (log_snr[0] - log_snr[-1])
    wanted[0] = log_snr[-1]  # the ends exactly, whatever powers and roots round to
    if num_steps > 1:
        wanted[-1] = log_snr[0]
    return chain_at_log_snr(schedule, wanted)


def _monai(schedule: Schedule, num_steps: int) -> Chain:
    """As DDIMScheduler of MONAI 1.6 has it: `set_timesteps` and `step` there."""
    last = schedule.num_train_steps - 1
    t = np.linspace(last, 0, num_steps).round().astype(np.int32)
    to = t - schedule.num_train_steps // num_steps
    a, b = np.asarray(schedule.alphas_cumprod), np.asarray(schedule.one_minus_alphas_cumprod)
    ends = np.where(to < 0, 1.0, a[to]).astype(np.float32), np.where(to < 0, 0.0, b[to]).astype(np.float32)
    return _ended(t, a[t], b[t])._replace(ends=ends)


def chain_at_log_snr(schedule: Schedule, log_snr: np.ndarray) -> Chain:
    """The chain through the levels lambda = log(sqrt(a / (1 - a))) [n], ascending, with t interpolated linearly."""
    log_snr = np.asarray(log_snr, np.float64)
    table = _log_snr(schedule)
    t = np.interp(log_snr, table[::-1], np.arange(schedule.num_train_steps, dtype=np.float64)[::-1])
    return _ended(t, 1.0 / (1.0 + np.exp(-2.0 * log_snr)), 1.0 / (1.0 + np.exp(2.0 * log_snr)))


def _log_snr(schedule: Schedule) -> np.ndarray:
    a = np.asarray(schedule.alphas_cumprod, np.float64)
    return 0.5 * np.log(a / np.asarray(schedule.one_minus_alphas_cumprod, np.float64))


def _ended(t: np.ndarray, a: np.ndarray, b: np.ndarray) -> Chain:
    return Chain(t.astype(np.float32), np.append(a, 1.0).astype(np.float32), np.append(b, 0.0).astype(np.float32))


def check_spacing(spacing: str) -> None:
    """Raises UserError naming the spacings unless `spacing` is one of them."""
    if spacing not in SPACINGS:
        raise UserError(f"Unknown spacing of sampling steps {shown(spacing)}: the spacings are {', '.join(SPACINGS)}.")


def ddim_timesteps(num_train_steps: int, num_steps: int) -> np.ndarray:
    """The [num_steps] int32 time steps of a shortened chain, descending: multiples of T // num_steps,
    ending at 0.

    For T = 1000 and 50 steps: 980, 960, ..., 0. Each step leads to the next entry and the last one to x_0.
    Raises UserError unless 1 <= num_steps <= num_train_steps.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise UserError(
            f"The number of sampling steps must lie between 1 and the {num_train_steps} steps that the model "
            f"was trained with, not {num_steps}."
        )
    stride = num_train_steps // num_steps
    return (np.arange(num_steps, dtype=np.int32) * stride)[::-1].copy()
