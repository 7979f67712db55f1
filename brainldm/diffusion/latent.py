"""From conditions to latents with a trained network, and from latents to images: what training and generation share."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.diffusion.guidance import guided, match_batch, unguided
from brainldm.diffusion.samplers import ddim, initial_noise
from brainldm.diffusion.schedule import Schedule


def sample_latents(
    unet: nn.Module,
    params: Any,
    schedule: Schedule,
    condition: jax.Array,
    keys: jax.Array,
    latent_shape: tuple[int, ...],
    *,
    prediction: str,
    num_steps: int,
    eta: float | jax.Array = 0.0,
    guidance: float | jax.Array | None = None,
) -> jax.Array:
    """Scaled latents [B, *latent_shape] for `condition` [B, K], by DDIM; `keys` [B] decide each sample's noise.

    `eta` and `guidance` may be traced. `guidance` None leaves out the unconditional half of the network's batch,
    which is half the work and equals guidance 1.
    """

    def denoise_with_drop(x, t, drop):
        return unet.apply({"params": params}, x, t, match_batch(condition, x), drop)

    denoise = unguided(denoise_with_drop) if guidance is None else guided(denoise_with_drop, guidance)
    noise = initial_noise(keys, latent_shape)
    return ddim(denoise, schedule, noise, keys, num_steps=num_steps, eta=eta, prediction=prediction)


def decode_latents(
    autoencoder: nn.Module, params: Any, latents: jax.Array, latent_scale: float | jax.Array
) -> jax.Array:
    """Images [B, D, H, W] in [0, 1] of scaled latents. One at a time, so that memory does not grow with B."""

    def decode(latent):
        image = autoencoder.apply({"params": params}, latent[None] / latent_scale, method="decode")
        return jnp.clip(image[0, ..., 0], 0.0, 1.0)

    return jax.lax.map(decode, latents)
