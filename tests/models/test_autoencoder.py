"""Size, shapes, types and switches of the autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import UNOPTIMISED, apply, random_variables

from brainldm.models.autoencoder import AutoencoderKL
from brainldm.runtime.errors import UserError

SMALL = {"channels": (4, 8), "num_res_blocks": 1, "norm_num_groups": 2, "latent_channels": 2}


@pytest.fixture(scope="module")
def variables():
    return random_variables(AutoencoderKL(**SMALL), jnp.zeros((1, 8, 8, 8, 1)))


def test_the_papers_autoencoder_has_its_number_of_parameters_and_its_latent_shape():
    x = jax.ShapeDtypeStruct((1, 160, 224, 160, 1), jnp.float32)
    network = AutoencoderKL()
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 13_766_248
    reconstruction, mu, sigma = jax.eval_shape(network.apply, variables, x)
    assert reconstruction.shape == x.shape
    assert mu.shape == sigma.shape == (1, 20, 28, 20, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_results_are_float32_and_agree_between_types(variables, dtype):
    x = jax.random.uniform(jax.random.key(1), (1, 8, 12, 8, 1))
    exact = apply(AutoencoderKL(**SMALL), variables, x)
    found = apply(AutoencoderKL(**SMALL, dtype=dtype), variables, x)
    assert all(array.dtype == jnp.float32 for array in found)
    tolerance = 1e-6 if dtype == jnp.float32 else 5e-2
    for a, b in zip(exact, found, strict=True):
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(a)


def test_a_key_adds_noise_of_the_latent_spread(variables):
    network = AutoencoderKL(**SMALL)
    x = jax.random.uniform(jax.random.key(1), (1, 8, 8, 8, 1))
    key = jax.random.key(5)
    reconstruction, mu, sigma = apply(network, variables, x, key)
    z = mu + sigma * jax.random.normal(key, mu.shape)
    expected = apply(network, variables, z, method="decode")
    np.testing.assert_allclose(reconstruction, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(reconstruction - apply(network, variables, x)[0]).max() > 1e-3


@pytest.mark.parametrize(("log_variance", "sigma"), [(100.0, np.exp(10.0)), (-100.0, np.exp(-15.0))])
def test_the_log_variance_is_clipped(variables, log_variance, sigma):
    params = dict(variables["params"])
    head = params["quant_conv_log_sigma"]
    params["quant_conv_log_sigma"] = {
        "kernel": jnp.zeros_like(head["kernel"]),
        "bias": jnp.full_like(head["bias"], log_variance),
    }
    x = jnp.zeros((1, 4, 4, 4, 1))
    _, found = apply(AutoencoderKL(**SMALL), {"params": params}, x, method="encode")
    np.testing.assert_allclose(found, sigma, rtol=1e-5)


@pytest.mark.parametrize("levels", [True, (0,), (1,)])
def test_remat_changes_neither_parameters_nor_gradients(variables, levels):
    x = jax.random.uniform(jax.random.key(1), (1, 4, 4, 4, 1))

    def gradient(remat):
        network = AutoencoderKL(**SMALL, remat=remat)
        loss = jax.grad(lambda v: (network.apply(v, x)[0] ** 2).mean())
        return jax.jit(loss, compiler_options=UNOPTIMISED)(variables)

    for a, b in zip(*(jax.tree.leaves(gradient(remat)) for remat in (False, levels)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_remat_of_a_level_recomputes_the_blocks_of_that_level(variables):
    """One block a level, in the encoder and in the decoder."""
    x = jnp.zeros((1, 4, 4, 4, 1))

    def recomputed(remat):
        network = AutoencoderKL(**SMALL, remat=remat)
        jaxpr = jax.make_jaxpr(lambda v: network.apply(v, x))(variables)
        blocks = [equation for equation in jaxpr.eqns if "prevent_cse" in equation.params]
        return sorted({equation.outvars[0].aval.shape[1] for equation in blocks}), len(blocks)

    assert recomputed(False) == ([], 0)
    assert recomputed((0,)) == ([4], 2)
    assert recomputed((1,)) == ([2], 2)
    assert recomputed(True) == ([2, 4], 4)


def test_sides_that_cannot_be_halved_are_refused(variables):
    with pytest.raises(UserError, match="multiples of 2"):
        AutoencoderKL(**SMALL).apply(variables, jnp.zeros((1, 8, 9, 8, 1)))


def test_a_mirrored_network_takes_and_gives_volumes_from_left_to_right(variables):
    x = jax.random.uniform(jax.random.key(1), (1, 8, 12, 8, 1))
    plain, mirrored = AutoencoderKL(**SMALL), AutoencoderKL(**SMALL, mirrored=True)
    reconstruction, mu, _ = apply(plain, variables, x[:, ::-1])
    turned, turned_mu, _ = apply(mirrored, variables, x)
    np.testing.assert_array_equal(turned_mu, mu)
    np.testing.assert_array_equal(turned, reconstruction[:, ::-1])
    assert np.abs(turned - apply(plain, variables, x)[0]).max() > 1e-3
