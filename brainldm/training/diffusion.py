"""Stage two: loss and step of the denoising network, pure functions of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from brainldm.diffusion.objectives import diffusion_loss, draw_times
from brainldm.diffusion.samplers import step_noise
from brainldm.diffusion.schedule import Schedule, make_schedule
from brainldm.models import build as networks
from brainldm.models.unet import DiffusionUNet
from brainldm.parallel.sharding import Sharding
from brainldm.runtime.errors import UserError
from brainldm.training.config import covariates_of
from brainldm.training.optimizer import learning_rate_schedule, make_optimizer
from brainldm.training.state import AveragedDiffusionState, DiffusionState, accumulate, ema_update, power_update
from brainldm.weights.power_ema import LENGTHS

Metrics = dict[str, jax.Array]

VALIDATION_TIMES = 8
"""Time steps, spread evenly, at which the validation loss of every sample is taken."""


def unet_arguments(config: ml_collections.ConfigDict, latent_channels: int, condition_dim: int) -> dict[str, Any]:
    """Constructor arguments (dtype by name) of the network that a config's `model` and `loss` describe.

    Raises UserError for a null condition that is neither "learned" nor a number.
    """
    model = config.model
    null = model.null_condition
    if null != "learned":
        try:
            null = float(null)
        except ValueError:
            raise UserError(
                f"config.model.null_condition is {null!r}; it can be 'learned' or a number such as '-1'."
            ) from None
    return {
        **model.to_dict(),
        "null_condition": null,
        **({"condition_flags": True} if config.loss.covariate_dropout else {}),
        "condition_dim": condition_dim,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
    }


def schedule_of(config: ml_collections.ConfigDict) -> Schedule:
    """The noise schedule that a config names."""
    return make_schedule(**config.schedule.to_dict())


def build(
    config: ml_collections.ConfigDict, unet: DiffusionUNet, sharding: Sharding | None = None
) -> tuple[Callable, Callable, Callable]:
    """The functions of stage two for a state and batches that lie as `sharding` says (None: on one device).

    Returns
      init(key, batch, latent_scale) -> DiffusionState
      train_step(state, batch, frozen) -> (state, metrics); batches hold "latent" [B, d, h, w, C] (unscaled
        posterior means) and "condition" [B, K]; `frozen` is not used
      validation_loss(params, latent_scale, batch) -> [B], the unweighted loss without condition dropout, at fixed
        times and with noise that depends on the sample's index alone
    """
    sharding, schedule = sharding or Sharding(config.mesh), schedule_of(config)
    rates = config.optimizer
    timing = {"num_steps": config.num_steps, "warmup_steps": rates.warmup_steps, "decay": rates.decay}
    options = {name: rates[name] for name in ("weight_decay", "gradient_clip", "muon_learning_rate")}
    optimizer = make_optimizer(rates.learning_rate, **timing, **options)
    learning_rate = learning_rate_schedule(rates.learning_rate, **timing)
    prediction = config.loss.prediction
    gamma = config.loss.min_snr_gamma or None
    decay = config.optimizer.ema_decay
    widths = [item.width for item in covariates_of(config)]
    owner = np.repeat(np.arange(len(widths)), widths)  # of each number of the condition vector

    def init(key: jax.Array, batch: dict, latent_scale: float) -> DiffusionState:
        times = jnp.zeros(batch["latent"].shape[0], jnp.int32)
        params = unet.init(key, batch["latent"], times, batch["condition"])["params"]
        fields = {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),  # a copy, because the step donates both
            "opt_state": optimizer.init(params),
            "latent_scale": jnp.asarray(latent_scale, jnp.float32),
        }
        if not config.optimizer.power_ema:
            return DiffusionState(**fields)
        return AveragedDiffusionState(**fields, averages={name: jax.tree.map(jnp.copy, params) for name in LENGTHS})

    def loss(params, batch, latent_scale, key):
        batch = jax.tree.map(sharding.constrain_batch, batch)
        x0 = batch["latent"] * latent_scale
        key_noise, key_time, key_drop = jax.random.split(key, 3)
        size = x0.shape[0]
        noise = jax.random.normal(key_noise, (size, x0.size // size)).reshape(x0.shape)  # as rows: see `step_noise`
        t = draw_times(key_time, size, schedule.num_train_steps, config.loss.times)
        c = batch["condition"]
        if config.loss.condition_dropout or config.loss.covariate_dropout:
            null = unet.apply({"params": params}, method="null_conditions")
            c = drop_conditions(key_drop, c, null, config.loss.condition_dropout, config.loss.covariate_dropout, owner)

        def network(x, t):
            return sharding.constrain_batch(unet.apply({"params": params}, sharding.constrain_batch(x), t, c))

        return jnp.mean(diffusion_loss(schedule, prediction, network, x0, noise, t, gamma))

    def train_step(state: DiffusionState, batch: dict, frozen: Any) -> tuple[DiffusionState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def compute(part: dict, key: jax.Array):
            return sharding.value_and_grad(loss)(state.params, part, state.latent_scale, key)

        arrays = {name: batch[name] for name in ("latent", "condition")}
        value, gradients = accumulate(compute, arrays, key, config.accumulation_steps)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": learning_rate(state.step),
        }
        new = {"step": state.step + 1, "params": params, "opt_state": opt_state}
        if isinstance(state, AveragedDiffusionState):
            new["averages"] = power_update(state.averages, params, state.step + 1)
        return state.replace(**new, ema=ema_update(state.ema, params, state.step, decay)), metrics

    def validation_loss(params: Any, latent_scale: jax.Array, batch: dict) -> jax.Array:
        params, batch = sharding.gather_params(params), jax.tree.map(sharding.constrain_batch, batch)
        x0 = batch["latent"] * latent_scale
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(batch["index"])
        spacing = schedule.num_train_steps / VALIDATION_TIMES

        def network(x, t):
            return unet.apply({"params": params}, x, t, batch["condition"])

        def at_time(total, number):
            noise = step_noise(keys, number, x0.shape[1:])
            t = jnp.full(x0.shape[0], ((number + 0.5) * spacing).astype(jnp.int32))
            return total + diffusion_loss(schedule, prediction, network, x0, noise, t), None

        total, _ = jax.lax.scan(at_time, jnp.zeros(x0.shape[0]), jnp.arange(VALIDATION_TIMES))
        return total / VALIDATION_TIMES

    return init, train_step, validation_loss


def drop_conditions(
    key: jax.Array, c: jax.Array, null: jax.Array, every: float, single: float, owner: np.ndarray
) -> jax.Array:
    """Normalised conditions c [B, K] of which the network does not see all.

    A share `every` of the rows becomes `null` [K] (Ho and Salimans 2022). Of the others each covariate becomes NaN, not
    given, with probability `single`, apart from the others; owner [K] is the covariate that a number belongs to.
    """
    size = c.shape[0]
    if every:
        drop = jax.random.uniform(key, (size,)) < every
        c = jnp.where(drop[:, None], null, c)
    if single:
        drops = jax.random.uniform(jax.random.fold_in(key, 1), (size, int(owner.max()) + 1)) < single
        c = jnp.where(drops[:, owner], jnp.nan, c)
    return c


def state_shapes(config: ml_collections.ConfigDict, latent_shape: tuple[int, ...]) -> DiffusionState:
    """The shapes and types of a state for latents [*latent_shape], without making one."""
    width = covariates_of(config).width
    unet = networks.build("unet", unet_arguments(config, latent_shape[-1], width), num_devices=1)
    init, _, _ = build(config, unet)
    batch = {
        "latent": jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32),
        "condition": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    return jax.eval_shape(lambda key, row: init(key, row, 1.0), jax.random.key(config.seed), batch)
