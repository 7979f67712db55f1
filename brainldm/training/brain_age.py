"""The brain-age network: loss and step, pure functions of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from brainldm.models import build as networks
from brainldm.parallel.sharding import Sharding
from brainldm.training.config import covariates_of
from brainldm.training.optimizer import learning_rate_schedule, make_optimizer
from brainldm.training.state import BrainAgeState, accumulate
from brainldm.volumes.grids import training_grid

Metrics = dict[str, jax.Array]


def age_range(config: ml_collections.ConfigDict) -> tuple[float, float]:
    """The ages in years that the network's numbers 0 and 1 stand for."""
    age = covariates_of(config)["age"]
    return age.low, age.high


def build(config: ml_collections.ConfigDict, sharding: Sharding | None = None) -> tuple[Callable, Callable, Callable]:
    """The functions of the brain-age network for a state and batches that lie as `sharding` says (None: one device).

    Returns
      init(key) -> BrainAgeState
      train_step(state, batch, frozen) -> (state, metrics); batches hold "image" [B, D, H, W, 1] and "condition" [B, 1],
        the age; the loss is the mean absolute error in years; `frozen` is not used
      predict(state, image) -> ages [B] in years, by the running statistics
    """
    sharding = sharding or Sharding(config.mesh)
    network = networks.build("brain_age", config.model.to_dict(), num_devices=sharding.num_devices)
    rates = config.optimizer
    timing = {"num_steps": config.num_steps, "warmup_steps": rates.warmup_steps, "decay": rates.decay}
    options = {name: rates[name] for name in ("weight_decay", "gradient_clip")}
    optimizer = make_optimizer(rates.learning_rate, **timing, **options)
    learning_rate = learning_rate_schedule(rates.learning_rate, **timing)
    low, high = age_range(config)

    def init(key: jax.Array) -> BrainAgeState:
        variables = network.init(key, jnp.zeros((1, *training_grid(config.data.spacing_mm).shape, 1)))
        return BrainAgeState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
        )

    def loss(params: Any, batch_stats: Any, part: dict) -> tuple[jax.Array, Any]:
        image, age = sharding.constrain_batch(part["image"]), part["condition"][:, 0]
        (number, _), updated = network.apply(
            {"params": params, "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
        )
        return (high - low) * jnp.mean(jnp.abs(number - age)), updated["batch_stats"]

    def train_step(state: BrainAgeState, batch: dict, frozen: Any) -> tuple[BrainAgeState, Metrics]:
        def compute(part: dict, key: jax.Array):
            return sharding.value_and_grad(loss, has_aux=True)(state.params, state.batch_stats, part)

        arrays, key = {name: batch[name] for name in ("image", "condition")}, jax.random.key(config.seed)
        (value, batch_stats), gradients = accumulate(compute, arrays, key, config.accumulation_steps)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return BrainAgeState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        ), {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": learning_rate(state.step),
        }

    def predict(state: BrainAgeState, image: jax.Array) -> jax.Array:
        variables = sharding.gather_params({"params": state.params, "batch_stats": state.batch_stats})
        return low + (high - low) * network.apply(variables, sharding.constrain_batch(image))[0]

    return init, train_step, predict


def state_shapes(config: ml_collections.ConfigDict) -> BrainAgeState:
    """The shapes and types of a state, without making one."""
    return jax.eval_shape(build(config)[0], jax.random.key(config.seed))
