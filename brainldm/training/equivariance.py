"""Latents that move as the volume does (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509).

With a chance the latent of a volume is moved before it is decoded, and compared with the volume moved alike:
D(tau(E(x))) with tau(x). Latents without a preferred orientation are smoother, and easier to learn for a diffusion
model. Of the moves of the paper, those that keep the grid of a box with unequal sides are the flips of its axes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Move = Callable[[jax.Array], jax.Array]


def random_flips(key: jax.Array, probability: float) -> Move:
    """A move of arrays [B, D, H, W, C], volumes and latents alike: with `probability` each axis is flipped or not with
    even chances, otherwise none is. For 0 it is the identity, and nothing is drawn."""
    if probability == 0:
        return lambda array: array
    key_any, key_axes = jax.random.split(key)
    flipped = jax.random.bernoulli(key_axes, 0.5, (3,)) & jax.random.bernoulli(key_any, probability)

    def move(array: jax.Array) -> jax.Array:
        for axis in range(3):
            array = jnp.where(flipped[axis], jnp.flip(array, axis + 1), array)
        return array

    return move
