"""The whole of a training run as one pytree per stage, and what both stages do with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

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
class DiffusionState:
    """State of stage two. `ema` is the moving average of `params` that samples are drawn with."""

    step: jax.Array  # int32, steps done
    params: Tree
    ema: Tree
    opt_state: optax.OptState
    latent_scale: jax.Array  # float32 scalar, multiplies the latents


def make_optimizer(
    learning_rate: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    decay: bool = False,
    gradient_clip: float = 0.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (Adam without weight decay) after clipping of the global norm, linear warm-up, cosine decay if asked."""
    warmup = min(warmup_steps, num_steps)
    if decay:
        rate = optax.warmup_cosine_decay_schedule(
            learning_rate if not warmup else 0.0, learning_rate, warmup, max(num_steps, warmup + 1)
        )
    else:
        rate = optax.warmup_constant_schedule(learning_rate if not warmup else 0.0, learning_rate, max(warmup, 1))
    adam = optax.adamw(rate, weight_decay=weight_decay) if weight_decay else optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(gradient_clip), adam) if gradient_clip else adam


def ema_update(ema: Tree, params: Tree, step: jax.Array, decay: float) -> Tree:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)
    return jax.tree.map(lambda average, value: rate * average + (1 - rate) * value, ema, params)


def accumulate(
    compute: Callable[[Tree, jax.Array], Tree], batch: Tree, key: jax.Array, steps: int
) -> Tree:
    """Mean over `steps` microbatches of compute(microbatch, key), by one scan.

    `batch` leaves [B, ...] are cut so that every microbatch takes rows from all over the batch: with the batch
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
