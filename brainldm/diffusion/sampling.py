"""From conditions to latents with a trained network, and from latents to images: what training and generation share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from brainldm.diffusion.guidance import guided
from brainldm.diffusion.objectives import Denoise, denoiser
from brainldm.diffusion.samplers import ddim, ddpm, dpmpp_2m, heun, initial_noise, step_noise
from brainldm.diffusion.schedule import Chain, Schedule, check_spacing, make_chain
from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import is_number, is_whole, shown

SAMPLERS = {
    "ddim": ddim,
    "ddpm": lambda denoise, chain, x, noise, eta: ddpm(denoise, chain, x, noise),
    "dpmpp_2m": lambda denoise, chain, x, noise, eta: dpmpp_2m(denoise, chain, x),
    "heun": lambda denoise, chain, x, noise, eta: heun(denoise, chain, x),
}

MAX_GUIDANCE = 100.0

Constraint = Callable[[jax.Array], jax.Array]


def _same(x: jax.Array) -> jax.Array:
    return x


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How samples are drawn from a diffusion model.

    num_steps: steps, each an evaluation of the network, with the sampler heun two. eta: 0 deterministic DDIM, 1
    ancestral; other samplers have none. guidance: scale of classifier-free guidance, 1 is the plain conditional model.
    sampler: one of SAMPLERS. spacing: one of `schedule.SPACINGS`. guidance_interval: the noise levels (low, high) at
    which guidance is used, both included, 0 being clean and 1 pure noise (Kynkaanniemi et al. 2024); a level is the
    standard deviation sqrt(1 - alpha_bar) of the noise in x_t, which is sigma / sqrt(1 + sigma^2) of their sigma.

    Raises UserError for a value that cannot be meant.
    """

    num_steps: int = 50
    eta: float = 0.0
    guidance: float = 1.0
    sampler: str = "ddim"
    spacing: str = "leading"
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_interval", checked_interval(self.guidance_interval))
        if not is_whole(self.num_steps) or self.num_steps < 1:
            raise UserError(
                f"The number of sampling steps is {shown(self.num_steps)}; it must be a whole number from 1 on."
            )
        for name, value, highest in (("eta", self.eta, 1.0), ("guidance", self.guidance, MAX_GUIDANCE)):
            if not is_number(value) or not 0.0 <= value <= highest:
                raise UserError(f"{name} of the sampling is {shown(value)}; it must be a number from 0 to {highest:g}.")
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            raise UserError(f"Unknown sampler {shown(self.sampler)}: the samplers are {', '.join(SAMPLERS)}.")
        if self.sampler != "ddim" and self.eta != 0:
            raise UserError(
                f"eta of the sampling is {self.eta:g}, which only the sampler ddim has. Set it to 0 for {self.sampler}."
            )
        check_spacing(self.spacing)
        if self.spacing == "monai" and (self.sampler != "ddim" or self.eta != 0):
            raise UserError(
                "The spacing monai is that of MONAI's deterministic DDIM. Use it with the sampler ddim and eta 0."
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary; `Sampling(**content)` is the reverse, also for one that lacks some."""
        return dataclasses.asdict(self)


def sample_latents(
    unet: nn.Module,
    params: Any,
    schedule: Schedule,
    sampling: Sampling,
    c: jax.Array,
    keys: jax.Array,
    latent_shape: tuple[int, ...],
    *,
    prediction: str,
    constrain: Constraint = _same,
) -> jax.Array:
    """Scaled latents [B, *latent_shape] for normalised conditions c [B, K]; `keys` [B] decide each sample's noise.

    What no step changes is computed once, before the loop, by the methods of `unet` (a `DiffusionUNet`) for it: its
    parameters in the type that they are read in, and what it makes of the time steps and of the conditions. `constrain`
    keeps arrays [B, ...] sharded over devices as they are. Raises UserError for more steps than the schedule has.
    """
    variables = {"params": unet.cast_params(params)}

    def network(x: jax.Array, t: Any, c: Any) -> jax.Array:
        return constrain(unet.apply(variables, constrain(x), t, c, method="predict"))

    def project(c: jax.Array) -> Any:
        return unet.apply(variables, c, method="project_conditions")

    conditions, guiding = project(c), None
    if sampling.guidance != 1:
        null = project(unet.apply(variables, method="null_conditions")[None])
        guiding = guided(network, jax.tree.map(lambda row: row[0], null), sampling.guidance)
    chain = make_chain(schedule, sampling.num_steps, sampling.spacing)
    times = unet.apply(variables, jnp.asarray(chain.t), method="embed_times")
    denoise = denoiser(lambda x, t: network(x, t, conditions), chain, prediction, times)
    if guiding is not None:
        strong = denoiser(lambda x, t: guiding(x, t, conditions), chain, prediction, times)
        denoise = within(sampling.guidance_interval, chain, strong, denoise)
    x = constrain(initial_noise(keys, latent_shape))
    # Hidden from the compiler, which would else fold the number into other roundings than those of a traced eta.
    eta = jax.lax.optimization_barrier(jnp.float32(sampling.eta)) if sampling.eta else 0.0
    return SAMPLERS[sampling.sampler](denoise, chain, x, lambda i: step_noise(keys, i, latent_shape), eta)


def checked_interval(interval: Any) -> tuple[float, float]:
    """Two noise levels, 0 <= low < high <= 1. Raises UserError for anything else."""
    try:
        low, high = (float(level) for level in interval)
    except (TypeError, ValueError, OverflowError):
        low, high = math.nan, math.nan
    if isinstance(interval, str) or not 0.0 <= low < high <= 1.0:
        raise UserError(
            f"guidance_interval of the sampling is {shown(interval)}; it must be two noise levels, the lower one "
            "first, from 0 (clean) to 1 (pure noise), such as (0.2, 0.8)."
        )
    return low, high


def within(interval: tuple[float, float], chain: Chain, inside: Denoise, outside: Denoise) -> Denoise:
    """`inside` at the levels of a chain whose noise lies in `interval`, and `outside`, alone evaluated, at the others.

    Where one of the two is all there is, it is that function itself.
    """
    levels = np.sqrt(np.asarray(chain.b, np.float64)[:-1])
    chosen = (levels >= interval[0]) & (levels <= interval[1])
    if chosen.all() or not chosen.any():
        return inside if chosen.any() else outside
    which = jnp.asarray(chosen)
    return lambda x, i: jax.lax.cond(which[i], lambda x: inside(x, i), lambda x: outside(x, i), x)


def decode_latents(
    autoencoder: nn.Module,
    params: Any,
    latents: jax.Array,
    latent_scale: float | jax.Array,
    *,
    at_once: int = 1,
    constrain: Constraint = _same,
) -> jax.Array:
    """Images [B, D, H, W] in [0, 1] of scaled latents, `at_once` at a time, so that memory does not grow with B.

    `at_once` divides B; where a batch is sharded over devices it is the number of shards, and `constrain` keeps arrays
    [at_once, d, h, w, C] sharded.
    """

    def decode(group):
        image = autoencoder.apply({"params": params}, constrain(group) / latent_scale, method="decode")
        return jnp.clip(constrain(image)[..., 0], 0.0, 1.0)

    # A group takes one row of each shard of the batch, so that rows stay on their devices.
    groups = latents.reshape(at_once, -1, *latents.shape[1:]).swapaxes(0, 1)
    images = jax.lax.map(decode, groups)
    return images.swapaxes(0, 1).reshape(latents.shape[0], *images.shape[2:])
