"""The LSGAN baseline, and what both adversarial baselines share: losses and steps, pure functions of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from brainldm.models import build as networks
from brainldm.parallel.sharding import Sharding
from brainldm.training.optimizer import learning_rate_schedule, make_optimizer
from brainldm.training.state import GanState, accumulate
from brainldm.volumes.grids import training_grid

Metrics = dict[str, jax.Array]


class Functions(NamedTuple):
    """An adversarial baseline for a state and batches that lie as its sharding says.

    init(key) -> GanState
    train_step(state, batch, frozen) -> (state, metrics); batches hold "image" [B, D, H, W, 1]; `frozen` is not used
    terms(state, image, z) -> {name: [B]}, the losses of held-out images and of as many samples, "loss" among them
    sample(params, z [B, latent_size]) -> volumes [B, D, H, W, 1] in [0, 1]
    reconstruct(params, image) -> volumes by the mean of the encoder; None without one
    """

    init: Callable
    train_step: Callable
    terms: Callable
    sample: Callable
    reconstruct: Callable | None = None


class Networks(NamedTuple):
    """The modules of a config."""

    generator: Any
    discriminator: Any
    encoder: Any = None


class Loss(NamedTuple):
    """What sets one baseline apart.

    gradients(state, image, key) -> (of the parameters, of the discriminator's, metrics with "loss" and "discriminator")
    terms: see `Functions`.
    """

    gradients: Callable
    terms: Callable


def generator_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Constructor arguments (dtype by name) of the generator that a config describes."""
    return {**config.model.to_dict(), "shape": training_grid(config.data.spacing_mm).shape}


def encoder_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Constructor arguments (dtype by name) of the encoder of a VAE-GAN's config."""
    arguments = config.model.to_dict()
    latent_size = arguments.pop("latent_size")
    return {**arguments, "outputs": 2 * latent_size}


def networks_of(config: ml_collections.ConfigDict, num_devices: int = 1) -> Networks:
    """The networks of a config, for programs whose arrays are sharded over `num_devices`."""
    discriminator = {**encoder_arguments(config), **config.discriminator.to_dict(), "outputs": 1}
    encoder = None
    if config.stage == "vae_gan":
        encoder = networks.build("critic", encoder_arguments(config), num_devices=num_devices)
    return Networks(
        networks.build("generator", generator_arguments(config), num_devices=num_devices),
        networks.build("critic", discriminator, num_devices=num_devices),
        encoder,
    )


def rows(values: jax.Array) -> jax.Array:
    """The mean of each row of [B, ...]."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def build(config: ml_collections.ConfigDict, loss: Callable, sharding: Sharding | None = None) -> Functions:
    """The functions of a baseline; `loss(config, networks, sharding)` gives its Loss.

    All networks take one optimizer step per batch, each by gradients at the parameters from before the step. The
    discriminator of a config with `loss.discriminator_rest` takes none where its loss is below that.
    """
    sharding = sharding or Sharding(config.mesh)
    nets = networks_of(config, sharding.num_devices)
    rates = config.optimizer
    timing = {"num_steps": config.num_steps, "warmup_steps": rates.warmup_steps, "decay": rates.decay}
    options = {**timing, "gradient_clip": rates.gradient_clip, "beta1": rates.beta1}
    optimizer = make_optimizer(rates.learning_rate, **options)
    discriminator_optimizer = make_optimizer(rates.discriminator_learning_rate, **options)
    learning_rate = learning_rate_schedule(rates.learning_rate, **timing)
    gradients_of, terms = loss(config, nets, sharding)
    rest = config.get("loss", {}).get("discriminator_rest", 0.0)

    def init(key: jax.Array) -> GanState:
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, *training_grid(config.data.spacing_mm).shape, 1))
        params = {"generator": nets.generator.init(keys[0], jnp.zeros((1, config.model.latent_size)))["params"]}
        if nets.encoder is not None:
            params["encoder"] = nets.encoder.init(keys[1], image)["params"]
        discriminator = nets.discriminator.init(keys[2], image)["params"]
        return GanState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            discriminator=discriminator,
            discriminator_opt_state=discriminator_optimizer.init(discriminator),
        )

    def train_step(state: GanState, batch: dict, frozen: Any) -> tuple[GanState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def compute(part: dict, key: jax.Array):
            return gradients_of(state, sharding.constrain_batch(part["image"]), key)

        gradients, disc_gradients, metrics = accumulate(
            compute, {"image": batch["image"]}, key, config.accumulation_steps
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        disc_updates, disc_opt_state = discriminator_optimizer.update(
            disc_gradients, state.discriminator_opt_state, state.discriminator
        )
        learnt = (optax.apply_updates(state.discriminator, disc_updates), disc_opt_state)
        if rest:
            trained = metrics["discriminator"] >= rest
            before = (state.discriminator, state.discriminator_opt_state)
            learnt = jax.tree.map(lambda new, old: jnp.where(trained, new, old), learnt, before)
            metrics["discriminator_trained"] = trained.astype(jnp.float32)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["update_norm"] = optax.tree.norm(updates)
        metrics["learning_rate"] = learning_rate(state.step)
        return GanState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            discriminator=learnt[0],
            discriminator_opt_state=learnt[1],
        ), metrics

    def whole_terms(state: GanState, image: jax.Array, z: jax.Array) -> Metrics:
        params, discriminator = sharding.gather_params((state.params, state.discriminator))
        state = state.replace(params=params, discriminator=discriminator)
        return terms(state, sharding.constrain_batch(image), sharding.constrain_batch(z))

    def sample(params: Any, z: jax.Array) -> jax.Array:
        params = sharding.gather_params(params["generator"])
        return sharding.constrain_batch(nets.generator.apply({"params": params}, sharding.constrain_batch(z)))

    def reconstruct(params: Any, image: jax.Array) -> jax.Array:
        encoder, image = sharding.gather_params(params["encoder"]), sharding.constrain_batch(image)
        mu, _ = jnp.split(nets.encoder.apply({"params": encoder}, image)[-1], 2, axis=-1)
        return sample(params, mu)

    return Functions(init, train_step, whole_terms, sample, None if nets.encoder is None else reconstruct)


def least_squares(config: ml_collections.ConfigDict, nets: Networks, sharding: Sharding) -> Loss:
    """The losses of the LSGAN (Mao et al. 2017, equation 9): the discriminator's 1/2 (D(x) - 1)^2 + 1/2 D(G(z))^2, the
    generator's 1/2 (D(G(z)) - 1)^2."""

    def logits(discriminator: Any, image: jax.Array) -> jax.Array:
        return nets.discriminator.apply({"params": discriminator}, image)[-1]

    def adversarial(discriminator: Any, made: jax.Array) -> jax.Array:
        return rows(0.5 * jnp.square(logits(discriminator, made) - 1))

    def discrimination(discriminator: Any, image: jax.Array, made: jax.Array) -> jax.Array:
        real, fake = logits(discriminator, image), logits(discriminator, made)
        return rows(0.5 * jnp.square(real - 1) + 0.5 * jnp.square(fake))

    def gradients(state: GanState, image: jax.Array, key: jax.Array) -> tuple[Any, Any, Metrics]:
        z = sharding.constrain_batch(jax.random.normal(key, (image.shape[0], config.model.latent_size)))

        def generator_loss(params, discriminator):
            made = sharding.constrain_batch(nets.generator.apply({"params": params["generator"]}, z))
            return jnp.mean(adversarial(sharding.gather_params(discriminator), made)), made

        def discriminator_loss(discriminator, made):
            return jnp.mean(discrimination(discriminator, image, made))

        (loss, made), of_params = sharding.value_and_grad(generator_loss, has_aux=True)(
            state.params, state.discriminator
        )
        told, of_discriminator = sharding.value_and_grad(discriminator_loss)(
            state.discriminator, jax.lax.stop_gradient(made)
        )
        return of_params, of_discriminator, {"loss": loss, "discriminator": told}

    def terms(state: GanState, image: jax.Array, z: jax.Array) -> Metrics:
        made = nets.generator.apply({"params": state.params["generator"]}, z)
        return {
            "loss": adversarial(state.discriminator, made),
            "discriminator": discrimination(state.discriminator, image, made),
        }

    return Loss(gradients, terms)


def state_shapes(config: ml_collections.ConfigDict, loss: Callable) -> GanState:
    """The shapes and types of a state, without making one."""
    return jax.eval_shape(build(config, loss).init, jax.random.key(config.seed))
