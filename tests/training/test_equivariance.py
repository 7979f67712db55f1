"""Latents that move as the volume does."""

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.runtime.compiled_programs import quickly_compiled
from brainldm.training import autoencoder
from brainldm.training.equivariance import random_flips
from brainldm.training.flags import load_config


def flip(array, axes):
    return np.flip(array, [axis + 1 for axis, flipped in enumerate(axes) if flipped])


def test_volumes_and_latents_are_flipped_alike_and_as_often_as_asked():
    rng = np.random.default_rng(0)
    volume, latent = rng.random((1, 4, 6, 4, 1), np.float32), rng.random((1, 2, 3, 2, 8), np.float32)
    moved = jax.jit(lambda key: [random_flips(key, 0.5)(array) for array in (volume, latent)])
    flips = []
    for key in jax.random.split(jax.random.key(0), 200):
        one, other = map(np.asarray, moved(key))
        found = [axes for axes in np.ndindex(2, 2, 2) if np.array_equal(flip(volume, axes), one)]
        assert len(found) == 1
        np.testing.assert_array_equal(other, flip(latent, found[0]))
        flips.append(found[0])
    assert len(set(flips)) == 8
    assert 0.34 < np.mean([any(axes) for axes in flips]) < 0.54  # half of them are moved, an eighth of those by nothing


def test_without_it_nothing_is_drawn():
    volume = jnp.ones((1, 2, 2, 2, 1))
    assert random_flips(jax.random.key(0), 0.0)(volume) is volume


def test_a_step_decodes_the_moved_latent():
    """The network is not equivariant when it begins, so its loss on what is moved is another one."""
    small = {"model.channels": (4, 4), "loss.adversarial_start": 99, "loss.kl_weight": 0.0, "data.path": "x"}
    small |= {"loss.perceptual": "none", "loss.adversarial_weight": 0.0}
    image = jnp.asarray(np.random.default_rng(0).random((1, 8, 8, 8, 1), np.float32))
    losses = []
    for probability in (0.0, 1.0):
        config = load_config("demo_autoencoder:tiny", {**small, "loss.equivariance": probability})
        init, step, _ = autoencoder.build(config, None)
        options = {"compiler_options": quickly_compiled()}
        state = jax.jit(init, **options)(jax.random.key(0), image)
        metrics = jax.jit(step, **options)(state, {"image": image}, None)[1]
        losses.append(float(metrics["l1"]))
    assert np.isfinite(losses).all() and abs(losses[0] / losses[1] - 1) > 1e-4
