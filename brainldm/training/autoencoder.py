"""Stage one: loss and step of the autoencoder and its discriminator, pure functions of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from brainldm.models import build as networks
from brainldm.parallel.sharding import Sharding
from brainldm.training.equivariance import random_flips
from brainldm.training.optimizer import learning_rate_schedule, make_optimizer
from brainldm.training.state import AutoencoderState, accumulate
from brainldm.volumes.grids import training_grid
from brainldm.weights.perceptual import Distance, feature_matching

Metrics = dict[str, jax.Array]


def kl_divergence(mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """KL of N(mu, sigma^2) from N(0, 1), summed over the latent and averaged over the batch."""
    kl = 0.5 * (mu**2 + sigma**2 - 2 * jnp.log(sigma) - 1)
    return jnp.sum(kl) / mu.shape[0]


def least_squares(logits: jax.Array, real: bool) -> jax.Array:
    """Least-squares adversarial loss (Mao et al. 2017): mean (logits - 1)^2 for real, mean logits^2 for fake."""
    return jnp.mean(jnp.square(logits - 1.0 if real else logits))


def build(
    config: ml_collections.ConfigDict, perceptual: Distance | None, sharding: Sharding | None = None
) -> tuple[Callable, Callable, Callable]:
    """The functions of stage one for a state and batches that lie as `sharding` says (None: on one device).

    Returns
      init(key, image [1, D, H, W, 1]) -> AutoencoderState
      train_step(state, batch, frozen) -> (state, metrics); `frozen` are the perceptual network's parameters
      reconstruct(params, image [B, D, H, W, 1]) -> (reconstruction of the posterior mean, mu, sigma)
    Both networks take one optimizer step per batch, the discriminator's on the reconstructions from before the
    autoencoder's update (the order of the first author's code). Before `adversarial_start` the discriminator
    neither trains nor counts.
    """
    sharding = sharding or Sharding(config.mesh)
    autoencoder = networks.build("autoencoder", config.model.to_dict(), num_devices=sharding.num_devices)
    arguments = {**config.discriminator.to_dict(), "dtype": config.model.dtype}
    discriminator = networks.build("discriminator", arguments, num_devices=sharding.num_devices)
    rates = config.optimizer
    timing = {"num_steps": config.num_steps, "warmup_steps": rates.warmup_steps, "decay": rates.decay}
    options = {**timing, "gradient_clip": rates.gradient_clip}
    optimizer = make_optimizer(rates.learning_rate, muon_learning_rate=rates.muon_learning_rate, **options)
    discriminator_optimizer = make_optimizer(rates.discriminator_learning_rate, **options)
    learning_rate = learning_rate_schedule(rates.learning_rate, **timing)
    weights = config.loss
    matching = weights.perceptual == "discriminator"
    # A discriminator that has no part in any step of the run is not compiled.
    ever_active = weights.adversarial_start < config.num_steps and (weights.adversarial_weight > 0 or matching)

    def if_active(active: jax.Array, then: Callable, otherwise: Callable, operand: Any) -> Any:
        return jax.lax.cond(active, then, otherwise, operand) if ever_active else otherwise(operand)

    def init(key: jax.Array, image: jax.Array) -> AutoencoderState:
        key_autoencoder, key_discriminator = jax.random.split(key)
        params = autoencoder.init(key_autoencoder, image)["params"]
        variables = discriminator.init(key_discriminator, image, train=True)
        return AutoencoderState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            discriminator=variables["params"],
            batch_stats=variables["batch_stats"],
            discriminator_opt_state=discriminator_optimizer.init(variables["params"]),
        )

    def features(disc_params: Any, batch_stats: Any, image: jax.Array) -> tuple[list[jax.Array], Any]:
        outputs, updated = discriminator.apply(
            {"params": disc_params, "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
        )
        return outputs, updated["batch_stats"]

    def autoencoder_loss(params, state, image, key, frozen, active):
        key_latent, key_slices = jax.random.split(key)
        move = random_flips(jax.random.fold_in(key, 1), weights.equivariance)
        reconstruction, mu, sigma = map(
            sharding.constrain_batch, autoencoder.apply({"params": params}, image, key_latent, move)
        )
        image = sharding.constrain_batch(move(image))  # what is compared, from here on
        l1 = jnp.mean(jnp.abs(reconstruction - image))
        kl = kl_divergence(mu, sigma)
        total = l1 + weights.kl_weight * kl
        metrics = {"l1": l1, "kl": kl}

        def with_discriminator(reconstruction):
            disc_params = sharding.gather_params(state.discriminator)
            fake, _ = features(disc_params, state.batch_stats, reconstruction)
            distance = jnp.zeros(())
            if matching:
                real, _ = features(disc_params, state.batch_stats, image)
                distance = feature_matching(fake, real)
            return least_squares(fake[-1], real=True), distance

        adversarial, distance = if_active(
            active, with_discriminator, lambda _: (jnp.zeros(()), jnp.zeros(())), reconstruction
        )
        total = total + weights.adversarial_weight * adversarial
        metrics["adversarial"] = adversarial
        if perceptual is not None:
            distance = perceptual(frozen, reconstruction, image, key_slices)
        if weights.perceptual != "none":
            total = total + weights.perceptual_weight * distance
            metrics["perceptual"] = distance
        metrics["loss"] = total
        return total, (metrics, image, reconstruction)

    def discriminator_loss(disc_params, batch_stats, image, reconstruction):
        fake, batch_stats = features(disc_params, batch_stats, reconstruction)
        real, batch_stats = features(disc_params, batch_stats, image)
        loss = 0.5 * (least_squares(fake[-1], real=False) + least_squares(real[-1], real=True))
        return weights.adversarial_weight * loss, (loss, batch_stats)

    def train_step(state: AutoencoderState, batch: dict, frozen: Any) -> tuple[AutoencoderState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        active = state.step >= weights.adversarial_start

        def compute(part: dict, key: jax.Array):
            image = sharding.constrain_batch(part["image"])
            (_, (metrics, image, reconstruction)), gradients = sharding.value_and_grad(autoencoder_loss, has_aux=True)(
                state.params, state, image, key, frozen, active
            )

            def train_discriminator(reconstruction):
                (_, (loss, stats)), disc_gradients = sharding.value_and_grad(discriminator_loss, has_aux=True)(
                    state.discriminator, state.batch_stats, image, reconstruction
                )
                return disc_gradients, stats, loss

            def leave_discriminator(reconstruction):
                zeros = sharding.shard_grads(jax.tree.map(jnp.zeros_like, state.discriminator))
                return zeros, state.batch_stats, jnp.zeros(())

            disc_gradients, stats, metrics["discriminator"] = if_active(
                active, train_discriminator, leave_discriminator, jax.lax.stop_gradient(reconstruction)
            )
            return gradients, disc_gradients, stats, metrics

        gradients, disc_gradients, batch_stats, metrics = accumulate(
            compute, {"image": batch["image"]}, key, config.accumulation_steps
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["update_norm"] = optax.tree.norm(updates)
        metrics["learning_rate"] = learning_rate(state.step)

        def update_discriminator(_):
            updates, opt_state = discriminator_optimizer.update(
                disc_gradients, state.discriminator_opt_state, state.discriminator
            )
            return optax.apply_updates(state.discriminator, updates), opt_state

        disc_params, disc_opt_state = if_active(
            active, update_discriminator, lambda _: (state.discriminator, state.discriminator_opt_state), None
        )
        return AutoencoderState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            discriminator=disc_params,
            batch_stats=batch_stats,
            discriminator_opt_state=disc_opt_state,
        ), metrics

    def reconstruct(params: Any, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        params, image = sharding.gather_params(params), sharding.constrain_batch(image)
        return tuple(map(sharding.constrain_batch, autoencoder.apply({"params": params}, image)))

    return init, train_step, reconstruct


def state_shapes(config: ml_collections.ConfigDict) -> AutoencoderState:
    """The shapes and types of a state, without making one."""
    init, _, _ = build(config, None)
    image = jax.ShapeDtypeStruct((1, *training_grid(config.data.spacing_mm).shape, 1), jnp.float32)
    return jax.eval_shape(init, jax.random.key(config.seed), image)
