"""SynthSeg's network against the same network written out layer by layer, from both layouts of its weights."""

import jax
import numpy as np
import pytest
from synthseg_weights import in_torch_names, network, random_weights

from brainldm.models.features.synthseg import expected_shapes, load_synthseg
from brainldm.runtime.errors import UserError


def test_both_layouts_give_the_network_of_the_description():
    weights = random_weights(num_labels=7)
    x = np.random.default_rng(1).random((1, 12, 8, 16, 1), dtype=np.float32)
    expected = network(weights, x)
    assert expected.std() > 0.1
    for tensors in (weights, in_torch_names(weights)):
        unet, variables = load_synthseg(tensors)
        assert (unet.num_labels, unet.features, unet.levels) == (7, 2, 3)
        found = jax.jit(unet.apply)(variables, x)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_published_sizes():
    """74 arrays; the numbers of parameters of 1.0 and 2.0."""
    for labels, parameters in ((32, 13_242_824), (33, 13_242_849)):
        shapes = expected_shapes(labels)
        assert len(shapes) == 74 and sum(int(np.prod(shape)) for shape in shapes.values()) == parameters


def test_what_does_not_fit_is_named():
    weights = random_weights(num_labels=3)
    del weights["unet_bn_up_1/gamma"]
    weights["unet_conv_uparm_3_0/bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match=r"unet_conv_uparm_3_0/bias is \(5,\) instead of \(4,\); unet_bn_up_1/gamma is"):
        load_synthseg(weights)
    with pytest.raises(UserError, match="robust"):
        load_synthseg({"unet2_conv_downarm_0_0/kernel": np.zeros(1)})
