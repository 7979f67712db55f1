"""Size, shapes, statistics and initial values of the patch discriminator."""

import jax
import jax.numpy as jnp
import numpy as np
from small_networks import UNOPTIMISED

from brainldm.models.discriminator import PatchDiscriminator


def initial(network, x):
    """New variables, as a program that is not optimised: it runs once."""
    return jax.jit(network.init, static_argnums=2, compiler_options=UNOPTIMISED)(jax.random.key(0), x, False)


def test_the_discriminator_has_its_number_of_parameters():
    x = jax.ShapeDtypeStruct((1, 64, 64, 64, 1), jnp.float32)
    network = PatchDiscriminator()
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 24_830_689
    outputs = jax.eval_shape(lambda v, x: network.apply(v, x, False), variables, x)
    assert [output.shape[1] for output in outputs] == [32, 16, 8, 7, 6]
    assert [output.shape[-1] for output in outputs] == [96, 192, 384, 768, 1]


def test_training_normalises_with_the_batch_and_moves_the_running_statistics():
    network = PatchDiscriminator(channels=4, num_layers=1)
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 16, 1))
    variables = initial(network, x)
    outputs, changed = jax.jit(
        lambda v, x: network.apply(v, x, True, mutable=["batch_stats"]), compiler_options=UNOPTIMISED
    )(variables, x)
    assert outputs[-1].dtype == jnp.float32
    before, after = variables["batch_stats"]["layers_0"]["norm"], changed["batch_stats"]["layers_0"]["norm"]
    # Torch's momentum of 0.1: nine tenths of the old value (mean 0, variance 1) remain.
    layer = variables["params"]["layers_0"]["conv"]["kernel"]
    h = jax.lax.conv_general_dilated(
        outputs[0], layer, (1, 1, 1), ((1, 1),) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(after["mean"], 0.1 * h.mean((0, 1, 2, 3)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(after["var"], 0.9 + 0.1 * h.var((0, 1, 2, 3)), rtol=1e-4)
    assert np.array_equal(before["var"], np.ones(8))
    normal = outputs[1] / jnp.where(outputs[1] < 0, 0.2, 1.0)  # undo the leaky ReLU
    variance = h.var((0, 1, 2, 3))
    spread = variables["params"]["layers_0"]["norm"]["scale"] * jnp.sqrt(variance / (variance + 1e-5))
    np.testing.assert_allclose(normal.std((0, 1, 2, 3)), spread, rtol=1e-3)


def test_initial_values():
    x = jnp.zeros((1, 32, 32, 32, 1))
    network = PatchDiscriminator(channels=8, num_layers=2)
    params = initial(network, x)["params"]
    kernel = np.asarray(params["layers_1"]["conv"]["kernel"])
    assert abs(kernel.std() - 0.02) < 5e-4 and abs(kernel.mean()) < 5e-4
    assert 0.005 < np.asarray(params["layers_1"]["norm"]["scale"]).std() < 0.04
    assert not np.any(params["initial_conv"]["bias"])
