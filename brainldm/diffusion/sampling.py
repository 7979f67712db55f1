"""From conditions to latents with a trained network, and from latents to images: what training and generation share."""

from __future__ import annotations

from collections.abc import Callable
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
    place: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Scaled latents [B, *latent_shape] for `condition` [B, K], by DDIM; `keys` [B] decide each sample's noise.

    `eta` and `guidance` may be traced. `guidance` None leaves out the unconditional half of the network's batch,
    which is half the work and equals guidance 1. `place` keeps arrays [B, ...] split over devices, where they are.
    """

    def denoise_with_drop(x, t, drop):
        return place(unet.apply({"params": params}, place(x), t, match_batch(condition, x), drop))

    denoise = unguided(denoise_with_drop) if guidance is None else guided(denoise_with_drop, guidance)
    noise = place(initial_noise(keys, latent_shape))
    return ddim(denoise, schedule, noise, keys, num_steps=num_steps, eta=eta, prediction=prediction)


def decode_latents(
    autoencoder: nn.Module,
    params: Any,
    latents: jax.Array,
    latent_scale: float | jax.Array,
    *,
    at_once: int = 1,
    place: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Images [B, D, H, W] in [0, 1] of scaled latents, `at_once` at a time, so that memory does not grow with B.

    `at_once` divides B; where a batch is split over devices it is the number of parts, and `place` keeps arrays
    [at_once, d, h, w, C] split.
    """

    def decode(group):
        image = autoencoder.apply({"params": params}, place(group) / latent_scale, method="decode")
        return jnp.clip(place(image)[..., 0], 0.0, 1.0)

    # A group takes one row of each part of the batch, so that rows stay on their devices.
    groups = latents.reshape(at_once, -1, *latents.shape[1:]).swapaxes(0, 1)
    images = jax.lax.map(decode, groups)
    return images.swapaxes(0, 1).reshape(latents.shape[0], *images.shape[2:])
