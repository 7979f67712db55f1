"""The brain-age network: the layers of Cole et al., and its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from small_networks import UNOPTIMISED, apply, random_variables

from brainldm.models.brain_age import BrainAgeNet


def test_at_full_size_it_has_the_layers_of_cole():
    network, x = BrainAgeNet(dtype=jnp.bfloat16), jax.ShapeDtypeStruct((2, 160, 224, 160, 1), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    assert variables["params"]["linear"]["kernel"].shape == (128 * 5 * 7 * 5, 1)
    kernels = [variables["params"][f"block_{n}"][conv]["kernel"].shape for n in range(5) for conv in ("conv1", "conv2")]
    widths = [1, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128]
    assert kernels == [(3, 3, 3, a, b) for a, b in zip(widths, widths[1:], strict=False)]
    age, features = jax.eval_shape(network.apply, variables, x)
    assert (age.shape, age.dtype, features.shape, features.dtype) == ((2,), jnp.float32, (2, 128), jnp.float32)


def test_a_block_is_two_convolutions_a_norm_and_the_largest_of_eight():
    network = BrainAgeNet(channels=(2,))
    x = np.random.default_rng(0).random((1, 4, 4, 5, 1)).astype(np.float32)
    variables = random_variables(network, x)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    age, features = apply(network, variables, x)

    params, stats = variables["params"]["block_0"], variables["batch_stats"]["block_0"]["norm"]

    def conv(h, layer):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        h = jax.lax.conv_general_dilated(h, layer["kernel"], (1, 1, 1), "SAME", dimension_numbers=numbers)
        return h + layer["bias"]

    h = conv(np.maximum(conv(x, params["conv1"]), 0), params["conv2"])
    h = (h - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    h = np.maximum(np.asarray(h), 0)[:, :, :, :4].reshape(1, 2, 2, 2, 2, 2, 2, 2).max((2, 4, 6))
    np.testing.assert_allclose(features, h.mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    linear = variables["params"]["linear"]
    np.testing.assert_allclose(age, (h.reshape(1, -1) @ linear["kernel"] + linear["bias"])[:, 0], rtol=1e-4, atol=1e-6)


def test_training_moves_a_tenth_of_the_way_to_the_statistics_of_the_batch():
    network = BrainAgeNet(channels=(2,))
    x = np.random.default_rng(0).random((2, 4, 4, 4, 1)).astype(np.float32)
    variables = random_variables(network, x)
    _, changed = jax.jit(lambda v, x: network.apply(v, x, True, mutable=["batch_stats"]), compiler_options=UNOPTIMISED)(
        variables, x
    )
    before, after = (v["batch_stats"]["block_0"]["norm"]["mean"] for v in (variables, changed))
    assert np.abs(after - 0.9 * before).max() > 1e-4  # the rest is the batch's
    (age, _), (other, _) = apply(network, variables, x), apply(network, {**variables, **changed}, x)
    assert np.abs(np.asarray(age) - np.asarray(other)).max() > 1e-5
