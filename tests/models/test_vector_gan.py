"""The networks of the adversarial baselines: shapes, sizes, and what a volume depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import apply, random_variables

from brainldm.models.vector_gan import VolumeCritic, VolumeGenerator


def test_at_full_size_a_vector_grows_from_5_7_5_to_the_training_grid():
    network, z = VolumeGenerator(dtype=jnp.bfloat16), jax.ShapeDtypeStruct((2, 512), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), z)
    assert variables["params"]["linear"]["kernel"].shape == (512, 5 * 7 * 5 * 512)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 50_681_729
    volume = jax.eval_shape(network.apply, variables, z)
    assert (volume.shape, volume.dtype) == ((2, 160, 224, 160, 1), jnp.float32)


def test_the_critic_mirrors_the_generator():
    network, x = VolumeCritic(outputs=3, dtype=jnp.bfloat16), jax.ShapeDtypeStruct((2, 160, 224, 160, 1), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    *stages, numbers = jax.eval_shape(network.apply, variables, x)
    assert [stage.shape[1] for stage in stages] == [80, 40, 20, 10, 5]
    assert stages[-1].shape == (2, 5, 7, 5, 512) and stages[-1].dtype == jnp.bfloat16
    assert (numbers.shape, numbers.dtype) == ((2, 3), jnp.float32)


@pytest.fixture(scope="module")
def small():
    return VolumeGenerator(shape=(8, 12, 8), latent_size=3, channels=(2, 4, 4), norm_num_groups=2)


def test_a_volume_is_in_its_range_and_depends_on_its_own_vector_alone(small):
    z = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    variables = random_variables(small, z)
    both, other = apply(small, variables, z), apply(small, variables, np.stack([z[0], -z[1]]))
    assert both.shape == (2, 8, 12, 8, 1) and both.min() >= 0 and both.max() <= 1
    np.testing.assert_array_equal(both[0], other[0])
    assert np.abs(both[1] - other[1]).max() > 1e-3


def test_a_stage_that_is_recomputed_has_the_same_gradients(small):
    z = np.random.default_rng(0).standard_normal((1, 3)).astype(np.float32)
    variables = random_variables(small, z)

    def gradients(network):
        return jax.jit(jax.grad(lambda v: jnp.sum(network.apply(v, z) ** 2)))(variables)

    pairs = zip(*(jax.tree.leaves(gradients(network)) for network in (small, small.clone(remat=(0,)))), strict=True)
    for kept, recomputed in pairs:
        np.testing.assert_allclose(kept, recomputed, rtol=1e-4, atol=1e-6)
