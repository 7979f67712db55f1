"""Stage one: loss and step of the autoencoder and its discriminator, pure functions of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from brainldm.models import build as networks
from brainldm.parallel.sharding import ANYWHERE, Placement
from brainldm.training.perceptual import Distance, feature_matching
from brainldm.training.state import AutoencoderState, accumulate, make_optimizer

Metrics = dict[str, jax.Array]


def kl_divergence(mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """KL of N(mu, sigma^2) from N(0, 1), summed over the latent and averaged over the batch."""
    kl = 0.5 * (mu**2 + sigma**2 - 2 * jnp.log(sigma) - 1)
    return jnp.sum(kl) / mu.shape[0]


def least_squares(logits: jax.Array, real: bool) -> jax.Array:
    """Least-squares adversarial loss (Mao et al. 2017): mean (logits - 1)^2 for real, mean logits^2 for fake."""
    return jnp.mean(jnp.square(logits - 1.0 if real else logits))


def build(
    config: ml_collections.ConfigDict, perceptual: Distance | None, place: Placement = ANYWHERE
) -> tuple[Callable, Callable, Callable]:
    """The functions of stage one; `place` says where the arrays of a step lie.

    Returns
      init(key, image [1, D, H, W, 1]) -> AutoencoderState
      train_step(state, batch, frozen) -> (state, metrics); `frozen` are the perceptual network's parameters
      reconstruct(params, image [B, D, H, W, 1]) -> (reconstruction of the posterior mean, mu, sigma)
    Both networks take one optimizer step per batch, the discriminator's on the reconstructions from before the
    autoencoder's update (the order of the first author's code). Before `adversarial_start` the discriminator
    neither trains nor counts.
    """
    autoencoder = networks.build("autoencoder", config.model.to_dict(), num_devices=place.num_devices)
    arguments = {**config.discriminator.to_dict(), "dtype": config.model.dtype}
    discriminator = networks.build("discriminator", arguments, num_devices=place.num_devices)
    shared = {name: config.optimizer[name] for name in ("warmup_steps", "decay", "gradient_clip")}
    optimizer = make_optimizer(
        config.optimizer.learning_rate,
        num_steps=config.num_steps,
        muon_learning_rate=config.optimizer.muon_learning_rate,
        **shared,
    )
    discriminator_optimizer = make_optimizer(
        config.optimizer.discriminator_learning_rate, num_steps=config.num_steps, **shared
    )
    weights = config.loss
    matching = weights.perceptual == "discriminator"

    def init(key: jax.Array, image: jax.Array) -> AutoencoderState:
        key_autoencoder, key_discriminator = jax.random.split(key)
        params = autoencoder.init(key_autoencoder, image)["params"]
        judge = discriminator.init(key_discriminator, image, train=True)
        return AutoencoderState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            discriminator=judge["params"],
            batch_stats=judge["batch_stats"],
            discriminator_opt_state=discriminator_optimizer.init(judge["params"]),
        )

    def features(judge: Any, batch_stats: Any, image: jax.Array) -> tuple[list[jax.Array], Any]:
        outputs, updated = discriminator.apply(
            {"params": place.whole(judge), "batch_stats": batch_stats}, image, train=True, mutable=["batch_stats"]
        )
        return outputs, updated["batch_stats"]

    def autoencoder_loss(params, state, image, key, frozen, active):
        key_latent, key_slices = jax.random.split(key)
        reconstruction, mu, sigma = map(
            place.batch, autoencoder.apply({"params": place.whole(params)}, image, key_latent)
        )
        l1 = jnp.mean(jnp.abs(reconstruction - image))
        kl = kl_divergence(mu, sigma)
        total = l1 + weights.kl_weight * kl
        metrics = {"l1": l1, "kl": kl}

        def judged(reconstruction):
            fake, _ = features(state.discriminator, state.batch_stats, reconstruction)
            distance = jnp.zeros(())
            if matching:
                real, _ = features(state.discriminator, state.batch_stats, image)
                distance = feature_matching(fake, real)
            return least_squares(fake[-1], real=True), distance

        adversarial, distance = jax.lax.cond(active, judged, lambda _: (jnp.zeros(()), jnp.zeros(())), reconstruction)
        total = total + weights.adversarial_weight * adversarial
        metrics["adversarial"] = adversarial
        if perceptual is not None:
            distance = perceptual(frozen, reconstruction, image, key_slices)
        if weights.perceptual != "none":
            total = total + weights.perceptual_weight * distance
            metrics["perceptual"] = distance
        metrics["loss"] = total
        return total, (metrics, reconstruction)

    def discriminator_loss(judge, batch_stats, image, reconstruction):
        fake, batch_stats = features(judge, batch_stats, reconstruction)
        real, batch_stats = features(judge, batch_stats, image)
        loss = 0.5 * (least_squares(fake[-1], real=False) + least_squares(real[-1], real=True))
        return weights.adversarial_weight * loss, (loss, batch_stats)

    def train_step(state: AutoencoderState, batch: dict, frozen: Any) -> tuple[AutoencoderState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        active = state.step >= weights.adversarial_start

        def compute(part: dict, key: jax.Array):
            image = place.batch(part["image"])
            (_, (metrics, reconstruction)), gradients = jax.value_and_grad(autoencoder_loss, has_aux=True)(
                state.params, state, image, key, frozen, active
            )

            def judge_gradients(reconstruction):
                (_, (loss, stats)), judge = jax.value_and_grad(discriminator_loss, has_aux=True)(
                    state.discriminator, state.batch_stats, image, reconstruction
                )
                return judge, stats, loss

            def nothing(reconstruction):
                return jax.tree.map(jnp.zeros_like, state.discriminator), state.batch_stats, jnp.zeros(())

            judge, stats, metrics["discriminator"] = jax.lax.cond(
                active, judge_gradients, nothing, jax.lax.stop_gradient(reconstruction)
            )
            return place.cut(gradients), place.cut(judge), stats, metrics

        gradients, judge_gradients, batch_stats, metrics = accumulate(
            compute, {"image": batch["image"]}, key, config.accumulation_steps
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradients)

        def update_judge(_):
            updates, opt_state = discriminator_optimizer.update(
                judge_gradients, state.discriminator_opt_state, state.discriminator
            )
            return optax.apply_updates(state.discriminator, updates), opt_state

        judge, judge_opt_state = jax.lax.cond(
            active, update_judge, lambda _: (state.discriminator, state.discriminator_opt_state), None
        )
        return AutoencoderState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            discriminator=judge,
            batch_stats=batch_stats,
            discriminator_opt_state=judge_opt_state,
        ), metrics

    def reconstruct(params: Any, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return tuple(map(place.batch, autoencoder.apply({"params": place.whole(params)}, place.batch(image))))

    return init, train_step, reconstruct
