"""The whole of a training run as one pytree per stage, and what all stages do with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from brainldm.weights.power_ema import LENGTHS, exponent

Tree = Any


@flax.struct.dataclass
class AutoencoderState:
    """State of stage one. Random numbers are folded from `step`, so no key is kept."""

    step: jax.Array  # int32, steps done
    params: Tree
    opt_state: optax.OptState
    discriminator: Tree
    batch_stats: Tree
    discriminator_opt_state: optax.OptState


@flax.struct.dataclass
class GanState:
    """State of an adversarial baseline: `params` holds the generator and, of the VAE-GAN, the encoder, by name."""

    step: jax.Array  # int32, steps done
    params: dict[str, Tree]
    opt_state: optax.OptState
    discriminator: Tree
    discriminator_opt_state: optax.OptState


@flax.struct.dataclass
class BrainAgeState:
    """State of the brain-age network."""

    step: jax.Array  # int32, steps done
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState


@flax.struct.dataclass
class DiffusionState:
    """State of stage two. `ema` is the moving average of `params` that samples are drawn with."""

    step: jax.Array  # int32, steps done
    params: Tree
    ema: Tree
    opt_state: optax.OptState
    latent_scale: jax.Array  # float32 scalar, multiplies the latents


@flax.struct.dataclass
class AveragedDiffusionState(DiffusionState):
    """With two more averages of `params`, by the names of `weights.power_ema.LENGTHS`."""

    averages: dict[str, Tree]


def power_update(averages: dict[str, Tree], params: Tree, step: jax.Array) -> dict[str, Tree]:
    """The averages after step number `step` (1 for the first): with b = (1 - 1 / t)^(gamma + 1), a <- b a + (1 - b) p
    (Karras et al. 2024, eq. 2), so that of what was before the first step nothing is left."""
    log_rest = jnp.log1p(-1.0 / step.astype(jnp.float32))  # 1 - 1 / t itself would lose the digits of 1 / t
    result = {}
    for name, average in averages.items():
        new = -jnp.expm1((exponent(LENGTHS[name]) + 1.0) * log_rest)
        result[name] = jax.tree.map(lambda a, p, new=new: a + new * (p - a), average, params)
    return result


def ema_update(ema: Tree, params: Tree, step: jax.Array, decay: float) -> Tree:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)
    return jax.tree.map(lambda average, value: rate * average + (1 - rate) * value, ema, params)


def accumulate(compute: Callable[[Tree, jax.Array], Tree], batch: Tree, key: jax.Array, steps: int) -> Tree:
    """Mean over `steps` microbatches of compute(microbatch, key), by one scan.

    `batch` leaves [B, ...] are split so that every microbatch takes rows from all over the batch: with the batch
    split over devices, each device keeps its own rows. `compute` returns float32 arrays (gradients, metrics).
    """
    if steps == 1:
        return compute(batch, key)
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // steps, steps, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(total, now):
        index, part = now
        result = compute(part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    shapes = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(steps), micro))
    return jax.tree.map(lambda x: x / steps, total)
