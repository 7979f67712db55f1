"""Classifier-free guidance (Ho and Salimans 2022).

The network is given as `denoise_with_drop(x [N, ...], t [N], drop [N] bool)`, which replaces the conditions
of the samples marked in `drop` by the null condition of the model. `guided` calls it once with N = 2B:
every sample twice, the two copies side by side (b0 conditional, b0 dropped, b1 conditional, ...), so that a
batch sharded over devices stays where it is. Conditions that the function holds for B samples are brought
to N by `match_batch`:

    def denoise_with_drop(x, t, drop):
        return unet.apply({"params": params}, x, t, match_batch(conditions, x), drop)
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from brainldm.diffusion.objectives import Denoise

DenoiseWithDrop = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Tree = TypeVar("Tree")


def match_batch(conditions: Tree, x: jax.Array) -> Tree:
    """Repeats each leaf [B, ...] along the batch to the [N] samples of x, copies of one sample side by side.

    N must be a multiple of B; where N = B nothing changes. Raises ValueError otherwise.
    """

    def repeat(leaf: jax.Array) -> jax.Array:
        copies, rest = divmod(x.shape[0], leaf.shape[0])
        if rest:
            raise ValueError(f"conditions for {leaf.shape[0]} samples do not fit a batch of {x.shape[0]}")
        return leaf if copies == 1 else jnp.repeat(leaf, copies, axis=0)

    return jax.tree.map(repeat, conditions)


def guided(denoise_with_drop: DenoiseWithDrop, scale: float | jax.Array) -> Denoise:
    """A denoise function whose output is uncond + scale (cond - uncond), at the price of a doubled batch.

    scale: scalar, or [B] for one scale a sample; it may be traced, so one compiled program serves all
    values. 0 ignores the conditions, 1 is the plain conditional model (exactly), above 1 exaggerates the
    conditions. (In the notation of Ho and Salimans, scale = 1 + w.)
    """

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        batch = x.shape[0]
        t = jnp.broadcast_to(t, (batch,))
        drop = jnp.tile(jnp.array([False, True]), batch)
        output = denoise_with_drop(jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2, axis=0), drop).astype(jnp.float32)
        pairs = output.reshape(batch, 2, *output.shape[1:])
        conditional, unconditional = pairs[:, 0], pairs[:, 1]
        excess = jnp.asarray(scale, jnp.float32) - 1.0
        if excess.ndim:
            excess = excess.reshape(batch, *(1,) * (conditional.ndim - 1))
        # The same combination, written from the conditional end so that scale 1 returns it without rounding.
        return conditional + excess * (conditional - unconditional)

    return denoise


def unguided(denoise_with_drop: DenoiseWithDrop) -> Denoise:
    """The plain conditional denoise function: nothing dropped, one evaluation a sample."""

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return denoise_with_drop(x, jnp.broadcast_to(t, (x.shape[0],)), jnp.zeros(x.shape[0], bool))

    return denoise
