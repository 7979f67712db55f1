"""The losses of the adversarial baselines on networks of a few numbers: their formulas, and who learns from which."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from brainldm.parallel.sharding import Sharding
from brainldm.training import gan, vae_gan
from brainldm.training.config import CONFIGS
from brainldm.training.optimizer import make_optimizer
from brainldm.training.state import GanState

SIZE = 3


class Maker(nn.Module):
    """Volumes of 2 x 2 x 2 voxels."""

    @nn.compact
    def __call__(self, z):
        return nn.sigmoid(nn.Dense(8)(z)).reshape(-1, 2, 2, 2, 1)


class Looker(nn.Module):
    """A stage of features, and numbers."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        features = nn.tanh(nn.Dense(5)(x.reshape(len(x), -1)))
        return [features, nn.Dense(self.outputs)(features)]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).random((4, 2, 2, 2, 1)).astype(np.float32)


def loss_and_state(stage, image, **weights):
    config = CONFIGS[stage]().unlock()
    config.model.latent_size, config.discriminator.channels = SIZE, (4, 4)
    for name, value in weights.items():
        config.loss[name] = value
    nets = gan.Networks(Maker(), Looker(1), Looker(2 * SIZE) if stage == "vae_gan" else None)
    make = {"lsgan": gan.least_squares, "vae_gan": vae_gan.losses}[stage]
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"generator": nets.generator.init(keys[0], jnp.zeros((1, SIZE)))["params"]}
    if nets.encoder is not None:
        params["encoder"] = nets.encoder.init(keys[1], image)["params"]
    discriminator = nets.discriminator.init(keys[2], image)["params"]
    state = GanState(jnp.zeros((), jnp.int32), params, (), discriminator, ())
    return nets, make(config, nets, Sharding(config.mesh)), state


def test_the_losses_of_the_lsgan_are_those_of_mao(image):
    nets, loss, state = loss_and_state("lsgan", image)
    key = jax.random.key(7)
    z = jax.random.normal(key, (4, SIZE))

    def score(discriminator, x):
        return nets.discriminator.apply({"params": discriminator}, x)[-1]

    def made(params):
        return nets.generator.apply({"params": params["generator"]}, z)

    def generator_loss(params):
        return 0.5 * jnp.mean((score(state.discriminator, made(params)) - 1) ** 2)

    def discriminator_loss(discriminator):
        fake = score(discriminator, made(state.params))
        return 0.5 * jnp.mean((score(discriminator, image) - 1) ** 2) + 0.5 * jnp.mean(fake**2)

    of_params, of_discriminator, metrics = loss.gradients(state, image, key)
    for found, wanted, at in (
        ((metrics["loss"], of_params), generator_loss, state.params),
        ((metrics["discriminator"], of_discriminator), discriminator_loss, state.discriminator),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, jax.value_and_grad(wanted)(at)
        )
    terms = loss.terms(state, image, z)
    assert terms["loss"].shape == (4,) and float(terms["loss"].mean()) == pytest.approx(float(metrics["loss"]))
    assert float(terms["discriminator"].mean()) == pytest.approx(float(metrics["discriminator"]))


def test_each_network_of_the_vae_gan_learns_from_its_own_loss(image):
    def norms(**weights):
        _, loss, state = loss_and_state("vae_gan", image, **weights)
        of_params, of_discriminator, _ = loss.gradients(state, image, jax.random.key(7))
        return {**of_params, "discriminator": of_discriminator}

    def differ(name, one, other):
        pairs = zip(*(jax.tree.leaves(gradients[name]) for gradients in (one, other)), strict=True)
        return any(np.abs(a - b).max() > 1e-6 for a, b in pairs)

    plain = norms(prior_weight=0.1, reconstruction_weight=1.0)
    prior = norms(prior_weight=0.2, reconstruction_weight=1.0)
    reconstruction = norms(prior_weight=0.1, reconstruction_weight=2.0)
    names = ("encoder", "generator", "discriminator")
    assert {name for name in names if differ(name, plain, prior)} == {"encoder"}
    assert {name for name in names if differ(name, plain, reconstruction)} == {"generator"}


def test_without_the_prior_the_encoder_only_makes_features_alike(image):
    nets, loss, state = loss_and_state("vae_gan", image, prior_weight=0.0)
    key = jax.random.key(7)
    noise = jax.random.normal(jax.random.split(key)[0], (4, SIZE))

    def features(x):
        return nets.discriminator.apply({"params": state.discriminator}, x)[0]

    def expected(encoder):
        mu, log_variance = jnp.split(nets.encoder.apply({"params": encoder}, image)[-1], 2, axis=-1)
        z = mu + jnp.exp(log_variance / 2) * noise
        made = nets.generator.apply({"params": state.params["generator"]}, z)
        return 0.5 * jnp.mean((features(made) - features(image)) ** 2)

    of_params, _, metrics = loss.gradients(state, image, key)
    wanted = jax.value_and_grad(expected)(state.params["encoder"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        (metrics["features"], of_params["encoder"]),
        wanted,
    )


def test_the_divergence_from_the_prior_is_zero_at_the_prior_and_grows_away_from_it():
    assert float(vae_gan.divergence(jnp.zeros((1, 5)), jnp.zeros((1, 5)))[0]) == 0
    # KL of N(2, 1) from N(0, 1) is 2 nats in each dimension.
    assert float(vae_gan.divergence(jnp.full((1, 5), 2.0), jnp.zeros((1, 5)))[0]) == pytest.approx(10)
    half = vae_gan.divergence(jnp.zeros((1, 1)), jnp.full((1, 1), np.log(0.25)))
    assert float(half[0]) == pytest.approx(0.5 * (0.25 - 1 + np.log(4)))


def test_a_discriminator_that_wins_is_not_trained(image, monkeypatch):
    def step(rest):
        config = CONFIGS["vae_gan"]().unlock()
        config.model.latent_size, config.discriminator.channels = SIZE, (4, 4)
        config.loss.discriminator_rest = rest
        nets, _, state = loss_and_state("vae_gan", image)
        monkeypatch.setattr(gan, "networks_of", lambda config, num_devices: nets)
        functions = gan.build(config, vae_gan.losses)
        tx = make_optimizer(config.optimizer.learning_rate, num_steps=1, gradient_clip=1.0, beta1=0.5)
        state = state.replace(opt_state=tx.init(state.params), discriminator_opt_state=tx.init(state.discriminator))
        after, metrics = functions.train_step(state, {"image": image}, None)
        pairs = zip(*(jax.tree.leaves(s.discriminator) for s in (state, after)), strict=True)
        moved = any(np.abs(a - b).max() > 0 for a, b in pairs)
        count = int(
            optax.tree.get(after.discriminator_opt_state, "count", filtering=lambda path, _: "Adam" in str(path))
        )
        generator = zip(*(jax.tree.leaves(s.params) for s in (state, after)), strict=True)
        return moved, count, any(np.abs(a - b).max() > 0 for a, b in generator), metrics

    assert step(0.0)[:3] == (True, 1, True) and "discriminator_trained" not in step(0.0)[3]
    assert step(0.1)[:3] == (True, 1, True)
    moved, count, others, metrics = step(100.0)
    assert (moved, count, others, float(metrics["discriminator_trained"])) == (False, 0, True, 0.0)
