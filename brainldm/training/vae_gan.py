"""The VAE-GAN baseline (Larsen et al. 2016, arXiv 1512.09300): three losses, each for one network alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from brainldm.parallel.sharding import Sharding
from brainldm.training.gan import Loss, Metrics, Networks, rows
from brainldm.training.state import GanState

_LOG_VARIANCE = (-30.0, 20.0)  # as of the autoencoder's latents: beyond, an exponential leaves float32's useful range


def divergence(mu: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL of N(mu, exp(log_variance)) from N(0, 1) in nats, [B, n] to [B]: the sum over n."""
    return 0.5 * jnp.sum(jnp.square(mu) + jnp.exp(log_variance) - log_variance - 1, axis=-1)


def losses(config: ml_collections.ConfigDict, nets: Networks, sharding: Sharding) -> Loss:
    """The losses of algorithm 1 of Larsen et al. 2016, x~ reconstructed from a draw of the posterior, x_p generated.

    Encoder: prior_weight times the divergence from the prior, and half the squared difference between x and x~ of what
    the discriminator's middle stage makes of them. Generator: reconstruction_weight times that difference, and the
    cross-entropy of calling x~ and x_p real. Discriminator: the cross-entropy of calling x real, x~ and x_p not.
    Differences are means over the features where the paper has sums, which is a matter of the weights. The generator's
    cross-entropy is the one that does not saturate (Goodfellow et al. 2014).
    """
    weights, middle = config.loss, (len(config.discriminator.channels) - 2) // 2

    def posterior(encoder: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        mu, log_variance = jnp.split(nets.encoder.apply({"params": encoder}, image)[-1], 2, axis=-1)
        return mu, jnp.clip(log_variance, *_LOG_VARIANCE)

    def generate(generator: Any, z: jax.Array) -> jax.Array:
        return sharding.constrain_batch(nets.generator.apply({"params": generator}, z))

    def look(discriminator: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [B, ...] of the middle stage, float32, and logits [B]."""
        outputs = nets.discriminator.apply({"params": discriminator}, image)
        return outputs[middle].astype(jnp.float32), outputs[-1][:, 0]

    def difference(one: jax.Array, other: jax.Array) -> jax.Array:
        return 0.5 * rows(jnp.square(one - other))

    def called_real(logits: jax.Array) -> jax.Array:
        return jax.nn.softplus(-logits)

    def told_apart(real: jax.Array, again: jax.Array, drawn: jax.Array) -> jax.Array:
        return called_real(real) + jax.nn.softplus(again) + jax.nn.softplus(drawn)

    def gradients(state: GanState, image: jax.Array, key: jax.Array) -> tuple[Any, Any, Metrics]:
        shape = (image.shape[0], config.model.latent_size)
        noise, prior = (sharding.constrain_batch(jax.random.normal(k, shape)) for k in jax.random.split(key))
        critic = sharding.gather_params(state.discriminator)
        wanted = look(critic, image)[0]

        def encoder_loss(encoder, generator):
            mu, log_variance = posterior(encoder, image)
            z = mu + jnp.exp(0.5 * log_variance) * noise
            found = difference(look(critic, generate(sharding.gather_params(generator), z))[0], wanted)
            kl = jnp.mean(divergence(mu, log_variance))
            return weights.prior_weight * kl + jnp.mean(found), (z, kl, jnp.mean(found))

        def generator_loss(generator, z):
            again, drawn = generate(generator, z), generate(generator, prior)
            features, logits = look(critic, again)
            fooled = jnp.mean(called_real(logits) + called_real(look(critic, drawn)[1]))
            total = weights.reconstruction_weight * jnp.mean(difference(features, wanted)) + fooled
            return total, (again, drawn, fooled)

        def discriminator_loss(discriminator, again, drawn):
            return jnp.mean(told_apart(*(look(discriminator, x)[1] for x in (image, again, drawn))))

        parts = state.params
        (_, (z, kl, found)), of_encoder = sharding.value_and_grad(encoder_loss, has_aux=True)(
            parts["encoder"], parts["generator"]
        )
        (total, (again, drawn, fooled)), of_generator = sharding.value_and_grad(generator_loss, has_aux=True)(
            parts["generator"], jax.lax.stop_gradient(z)
        )
        told, of_discriminator = sharding.value_and_grad(discriminator_loss)(
            state.discriminator, *jax.lax.stop_gradient((again, drawn))
        )
        metrics = {"loss": total, "kl": kl, "features": found, "adversarial": fooled, "discriminator": told}
        metrics["l1"] = jnp.mean(jnp.abs(again - image))
        return {"encoder": of_encoder, "generator": of_generator}, of_discriminator, metrics

    def terms(state: GanState, image: jax.Array, z: jax.Array) -> Metrics:
        mu, log_variance = posterior(state.params["encoder"], image)
        again, drawn = (generate(state.params["generator"], code) for code in (mu, z))
        seen = [look(state.discriminator, x) for x in (image, again, drawn)]
        found, fooled = difference(seen[1][0], seen[0][0]), called_real(seen[1][1]) + called_real(seen[2][1])
        return {
            "loss": weights.reconstruction_weight * found + fooled,
            "kl": divergence(mu, log_variance),
            "features": found,
            "adversarial": fooled,
            "discriminator": told_apart(*(logits for _, logits in seen)),
            "l1": rows(jnp.abs(again - image)),
        }

    return Loss(gradients, terms)
