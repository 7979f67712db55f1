"""MeshNet against XLA's dilated convolutions, on random weights and on published ones read byte by byte."""

import json

import jax
import numpy as np
import pytest
from jax import lax

from brainldm.models.features.meshnet import MeshNetLayer, build_meshnet, dilated_conv3d
from brainldm.runtime.errors import UserError
from brainldm.volumes.nifti import read_volume
from brainldm.weights.tfjs_file import read_meshnet

LAYERS = (MeshNetLayer(3, 3, 1, "elu"), MeshNetLayer(4, 3, 5, "relu"), MeshNetLayer(2, 1, 1))


def direct(x, kernels, biases, dilations, activation):
    """The chain of convolutions as XLA has it, an activation between two of them."""
    for number, (kernel, bias, dilation) in enumerate(zip(kernels, biases, dilations, strict=True)):
        reach = kernel.shape[0] // 2 * dilation
        x = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1, 1),
            [(reach, reach)] * 3,
            rhs_dilation=(dilation,) * 3,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        x = x + bias
        x = activation(x) if number < len(kernels) - 1 else x
    return np.asarray(x)


def random_parts(rng, layers, scale=0.4):
    channels, kernels, biases = 1, [], []
    for layer in layers:
        shape = (layer.kernel_size,) * 3 + (channels, layer.features)
        kernels.append(rng.normal(0, scale, shape).astype(np.float32))
        biases.append(rng.normal(0, scale, layer.features).astype(np.float32))
        channels = layer.features
    return kernels, biases


@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
def test_dilated_convolution_is_that_of_xla(dilation):
    rng = np.random.default_rng(dilation)
    x = rng.normal(size=(2, 11, 7, 9, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 3, 2)).astype(np.float32)
    expected = direct(x, [kernel], [np.zeros(2, np.float32)], [dilation], None)
    np.testing.assert_allclose(jax.jit(dilated_conv3d, static_argnums=2)(x, kernel, dilation), expected, atol=2e-5)


def test_large_images_by_the_other_way(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 8, 7, 9, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 3, 2)).astype(np.float32)
    expected = dilated_conv3d(x, kernel, 2)
    monkeypatch.setattr("brainldm.models.features.meshnet._MANY_VOXELS", 0)
    np.testing.assert_allclose(dilated_conv3d(x, kernel, 2), expected, atol=2e-5)


def test_network_applies_each_layers_activation():
    rng = np.random.default_rng(0)
    kernels, biases = random_parts(rng, LAYERS)
    network, variables = build_meshnet(LAYERS, kernels, biases)
    x = rng.normal(size=(1, 8, 9, 10, 1)).astype(np.float32)
    first = jax.nn.elu(direct(x, kernels[:1], biases[:1], [1], None))
    second = jax.nn.relu(direct(first, kernels[1:2], biases[1:2], [5], None))
    expected = direct(second, kernels[2:], biases[2:], [1], None)
    np.testing.assert_allclose(network.apply(variables, x), expected, atol=1e-5)


def test_published_weights_against_their_bytes(shared):
    """A corner of a real scan, in all 18 classes; the weights are read here by their places in the file."""
    folder = shared / "data" / "meshnet" / "model30chan18cls"
    manifest = json.loads((folder / "model.json").read_text())["weightsManifest"][0]["weights"]
    stored, start, parts = np.fromfile(folder / "model.bin", "<f4"), 0, []
    for entry in manifest:
        count = int(np.prod(entry["shape"]))
        parts.append(stored[start : start + count].reshape(entry["shape"]))
        start += count
    assert start == stored.size
    scan = next((shared / "data" / "oasis_mni_1mm").glob("sub-*/ses-*/anat/*_T1w.nii.gz"))
    x = read_volume(scan).data[60:100, 90:130, 60:100][None, ..., None] / 255
    expected = direct(x, parts[::2], parts[1::2], [1, 2, 4, 8, 16, 8, 4, 2, 1, 1], jax.nn.elu)
    network, variables, _ = read_meshnet(folder)
    found = np.asarray(jax.jit(network.apply)(variables, x))
    assert found.shape == (1, 40, 40, 40, 18)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda layers, kernels: kernels.__setitem__(1, kernels[1][..., :1, :]), "convolution 2"),
        (lambda layers, kernels: layers.__setitem__(0, layers[0]._replace(activation="gelu")), "gelu"),
    ],
)
def test_parts_that_do_not_fit_are_refused(spoil, says):
    kernels, biases = random_parts(np.random.default_rng(0), LAYERS)
    layers = list(LAYERS)
    spoil(layers, kernels)
    with pytest.raises(UserError, match=says):
        build_meshnet(layers, kernels, biases)
