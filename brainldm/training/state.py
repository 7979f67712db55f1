"""The whole of a training run as one pytree per stage, and what both stages do with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib

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
    muon_learning_rate: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (Adam without weight decay) after clipping of the global norm, linear warm-up, cosine decay if asked.

    With `muon_learning_rate` the kernels take Muon's orthogonalised steps (Jordan et al. 2024; a convolution counts as
    a matrix of its taps and inputs by its outputs) and everything else keeps Adam.
    """

    def schedule(peak: float) -> optax.Schedule:
        warmup = min(warmup_steps, num_steps)
        start = peak if not warmup else 0.0
        if decay:
            return optax.warmup_cosine_decay_schedule(start, peak, warmup, max(num_steps, warmup + 1))
        return optax.warmup_constant_schedule(start, peak, max(warmup, 1))

    if muon_learning_rate:
        optimizer = optax.contrib.muon(
            schedule(muon_learning_rate),
            adam_learning_rate=schedule(learning_rate),
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrix_axes,
        )
    elif weight_decay:
        optimizer = optax.adamw(schedule(learning_rate), weight_decay=weight_decay)
    else:
        optimizer = optax.adam(schedule(learning_rate))
    return optax.chain(optax.clip_by_global_norm(gradient_clip), optimizer) if gradient_clip else optimizer


def _matrix_axes(params: Tree) -> Tree:
    """How Muon reads parameters as matrices: kernels [..., in, out] as (all the rest, out), vectors not at all."""

    def axes(x: jax.Array):
        if x.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree.map(axes, params)


def ema_update(ema: Tree, params: Tree, step: jax.Array, decay: float) -> Tree:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step)).astype(jnp.float32)
    return jax.tree.map(lambda average, value: rate * average + (1 - rate) * value, ema, params)


def accumulate(compute: Callable[[Tree, jax.Array], Tree], batch: Tree, key: jax.Array, steps: int) -> Tree:
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
