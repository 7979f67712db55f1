"""The space-to-depth autoencoder: its rearrangements, its shortcuts, and what it shares with the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import apply, random_variables

from brainldm.models.build import autoencoder_halvings, build
from brainldm.models.space_to_depth import (
    SpaceToDepthAutoencoder,
    depth_to_space,
    fold_channels,
    space_to_depth,
    unfold_channels,
)
from brainldm.runtime.errors import UserError

SMALL = {"channels": (4, 16), "num_res_blocks": (1, 2), "norm_num_groups": 2, "latent_channels": 3}


@pytest.fixture(scope="module")
def variables():
    return random_variables(SpaceToDepthAutoencoder(**SMALL), jnp.zeros((1, 8, 8, 8, 1)))


def test_voxels_move_into_channels_and_back():
    x = np.arange(2 * 4 * 6 * 8 * 3).reshape(2, 4, 6, 8, 3)
    moved = space_to_depth(x)
    assert moved.shape == (2, 2, 3, 4, 24)
    offset = (1, 0, 1)
    voxels = x[:, offset[0] :: 2, offset[1] :: 2, offset[2] :: 2]
    np.testing.assert_array_equal(moved[..., 15:18], voxels)  # 4, 2 and 1 for the offsets, times 3 channels
    np.testing.assert_array_equal(depth_to_space(moved), x)


@pytest.mark.parametrize(("features", "axes"), [(3, (2, 4, 6)), (6, (4, 6)), (12, (6,)), (24, ())])
def test_shortcuts_are_means_and_copies_of_neighbours(features, axes):
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 3))
    folded = fold_channels(space_to_depth(x), features)
    copied = depth_to_space(unfold_channels(folded, 3))
    blocks = x.reshape(1, 2, 2, 2, 2, 2, 2, 3)
    expected = jnp.broadcast_to(blocks.mean(axes, keepdims=True), blocks.shape).reshape(x.shape)
    np.testing.assert_allclose(copied, expected, atol=1e-6)


def test_where_widths_do_not_divide_there_is_no_shortcut():
    assert fold_channels(jnp.zeros((1, 2, 2, 2, 24)), 5) is None
    assert fold_channels(jnp.zeros((1, 2, 2, 2, 24)), 9) is None
    assert unfold_channels(jnp.zeros((1, 2, 2, 2, 7)), 3) is None
    assert unfold_channels(jnp.zeros((1, 2, 2, 2, 9)), 3) is None


def test_every_level_halves_the_sides(variables):
    network = SpaceToDepthAutoencoder(**SMALL)
    x = jax.random.uniform(jax.random.key(1), (2, 8, 12, 4, 1))
    reconstruction, mu, sigma = apply(network, variables, x)
    assert reconstruction.shape == x.shape and mu.shape == sigma.shape == (2, 2, 3, 1, 3)
    assert network.halvings == autoencoder_halvings({"architecture": "space_to_depth", **SMALL}) == 2
    assert autoencoder_halvings({"channels": (4, 8)}) == 1
    with pytest.raises(UserError, match="halves each side 2 times"):
        network.apply(variables, jnp.zeros((1, 6, 8, 8, 1)), method="encode")


def test_bfloat16_agrees_with_float32(variables):
    x = jax.random.uniform(jax.random.key(1), (1, 8, 8, 8, 1))
    exact = apply(SpaceToDepthAutoencoder(**SMALL), variables, x)
    found = apply(SpaceToDepthAutoencoder(**SMALL, dtype=jnp.bfloat16), variables, x)
    assert all(array.dtype == jnp.float32 for array in found)
    for a, b in zip(exact, found, strict=True):
        assert np.linalg.norm(a - b) < 5e-2 * np.linalg.norm(a)


def test_recomputed_blocks_change_no_gradient(variables):
    x = jax.random.uniform(jax.random.key(1), (1, 8, 8, 8, 1))

    def gradients(remat):
        network = SpaceToDepthAutoencoder(**SMALL, remat=remat)
        return jax.jit(jax.grad(lambda v: jnp.sum(network.apply(v, x)[0] ** 2)))(variables)

    kept, recomputed = gradients(False), gradients((0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), kept, recomputed)


def test_blocks_begin_as_the_identity():
    network = SpaceToDepthAutoencoder(**SMALL)
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))["params"]
    assert not np.any(params["encoder"]["level_1"]["blocks_1"]["conv2"]["kernel"])
    assert np.any(params["encoder"]["level_1"]["blocks_1"]["conv1"]["kernel"])


def test_an_unknown_architecture_is_named():
    with pytest.raises(UserError, match="'unet'.*kl or space_to_depth"):
        build("autoencoder", {"architecture": "unet", **SMALL}, num_devices=1)
