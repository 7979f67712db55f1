"""Classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# network(x_t [B, ...], t: arrays [B, ...], c: arrays [B, ...]) -> what it predicts [B, ...]
ConditionalNetwork = Callable[[jax.Array, Any, Any], jax.Array]


def guided(network: ConditionalNetwork, null: Any, scale: float | jax.Array) -> ConditionalNetwork:
    """A network whose output is uncond + scale (cond - uncond), by one call on the doubled batch.

    Every sample comes twice, the two side by side (b0 with its conditions, b0 with `null`, b1 with its conditions,
    ...), so that a batch sharded over devices stays where it is.

    null: what stands for "no conditions", of the structure of c, each array without the batch axis.
    scale: scalar, or [B] for one scale a sample; it may be traced, so one compiled program serves all values. 0 ignores
    the conditions, 1 is the plain conditional model (exactly), above 1 exaggerates the conditions. (In the notation of
    Ho and Salimans, scale = 1 + w.) The Python number 1 gives `network` itself, at the price of one evaluation.
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return network

    def guided_network(x: jax.Array, t: Any, c: Any) -> jax.Array:
        batch = x.shape[0]

        def twice(array: jax.Array) -> jax.Array:
            return jnp.repeat(array, 2, axis=0)

        def with_null(c: jax.Array, null: jax.Array) -> jax.Array:
            return jnp.stack([c, jnp.broadcast_to(null, c.shape)], axis=1).reshape(2 * batch, *c.shape[1:])

        both = jax.tree.map(with_null, c, null)
        output = network(twice(x), jax.tree.map(twice, t), both).astype(jnp.float32)
        pairs = output.reshape(batch, 2, *output.shape[1:])
        cond, uncond = pairs[:, 0], pairs[:, 1]
        excess = jnp.asarray(scale, jnp.float32) - 1.0
        if excess.ndim:
            excess = excess.reshape(batch, *(1,) * (cond.ndim - 1))
        # The same combination, written from the conditional end so that scale 1 returns it without rounding.
        return cond + excess * (cond - uncond)

    return guided_network
