"""The optimizer of all stages, and the learning rate of each step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

Tree = Any

_ITERATIONS = 5  # of Newton and Schulz, Muon's default


def learning_rate_schedule(
    peak: float, *, num_steps: int, warmup_steps: int = 0, decay: bool = False
) -> optax.Schedule:
    """The learning rate by the number of steps done: linear warm-up to `peak`, then cosine decay to zero if asked."""
    warmup = min(warmup_steps, num_steps)
    start = peak if not warmup else 0.0
    if decay:
        return optax.warmup_cosine_decay_schedule(start, peak, warmup, max(num_steps, warmup + 1))
    return optax.warmup_constant_schedule(start, peak, max(warmup, 1))


def make_optimizer(
    learning_rate: float,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    decay: bool = False,
    gradient_clip: float = 0.0,
    weight_decay: float = 0.0,
    muon_learning_rate: float = 0.0,
    beta1: float = 0.9,
) -> optax.GradientTransformation:
    """AdamW (Adam without weight decay) after clipping of the global norm, linear warm-up, cosine decay if asked.

    `beta1` is how much of the gradients before Adam remembers.

    With `muon_learning_rate` the kernels take Muon's orthogonalised steps (Jordan et al. 2024; a convolution counts as
    a matrix of its taps and inputs by its outputs) and everything else keeps Adam.
    """

    def schedule(peak: float) -> optax.Schedule:
        return learning_rate_schedule(peak, num_steps=num_steps, warmup_steps=warmup_steps, decay=decay)

    if muon_learning_rate:
        optimizer = _rolled(
            optax.contrib.muon(
                schedule(muon_learning_rate),
                adam_learning_rate=schedule(learning_rate),
                weight_decay=weight_decay,
                adam_weight_decay=weight_decay,
                muon_weight_dimension_numbers=_matrix_axes,
            )
        )
    elif weight_decay:
        optimizer = optax.adamw(schedule(learning_rate), b1=beta1, weight_decay=weight_decay)
    else:
        optimizer = optax.adam(schedule(learning_rate), b1=beta1)
    return optax.chain(optax.clip_by_global_norm(gradient_clip), optimizer) if gradient_clip else optimizer


def _rolled(muon: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon with its iterations in a loop, a fifth of what there is to compile for each kernel.

    It unrolls those of one set of coefficients and loops over sets, one for each iteration; the state keeps the one.
    """

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        coefficients = optax.tree.get(state, "ns_coeffs")
        sets = jnp.tile(coefficients, (_ITERATIONS, 1))
        updates, state = muon.update(updates, optax.tree.set(state, ns_coeffs=sets), params)
        return updates, optax.tree.set(state, ns_coeffs=coefficients)

    return optax.GradientTransformation(muon.init, update)


def _matrix_axes(params: Tree) -> Tree:
    """How Muon reads parameters as matrices: kernels [..., in, out] as (all the rest, out), vectors not at all."""

    def axes(x: jax.Array):
        if x.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree.map(axes, params)
