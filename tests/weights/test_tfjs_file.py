"""The reader of TensorFlow.js models: a MeshNet in both ways of naming its binary, and refusal of the rest."""

import hashlib
import json

import numpy as np
import pytest

from brainldm.models.features.meshnet import MeshNetLayer
from brainldm.runtime.errors import UserError
from brainldm.weights.tfjs_file import read_meshnet


def convolution(name, filters, side, dilation, **more):
    config = {"name": name, "filters": filters, "kernel_size": [side] * 3, "dilation_rate": [dilation] * 3}
    return {"class_name": "Conv3D", "config": {**config, "strides": [1, 1, 1], "padding": "same", **more}}


@pytest.fixture
def model(tmp_path):
    """The content of a model.json of two convolutions, with its binary in tmp_path, and the arrays."""
    rng = np.random.default_rng(0)
    tensors = {
        "a/kernel": rng.normal(size=(3, 3, 3, 1, 2)),
        "a/bias": rng.normal(size=2),
        "b/kernel": rng.normal(size=(1, 1, 1, 2, 3)),
        "b/bias": rng.normal(size=3),
    }
    tensors = {name: value.astype("<f4") for name, value in tensors.items()}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "input"}},
        convolution("a", 2, 3, 4, activation="linear"),
        {"class_name": "Activation", "config": {"name": "c", "activation": "elu"}},
        convolution("b", 3, 1, 1),
    ]
    weights = [{"name": n, "shape": list(v.shape), "dtype": "float32"} for n, v in tensors.items()]
    content = {
        "modelTopology": {"model_config": {"config": {"layers": layers}}},
        "weightsManifest": [{"paths": ["group1-shard1of1.bin"], "weights": weights}],
    }
    stored = b"".join(value.tobytes() for value in tensors.values())
    (tmp_path / "model.bin").write_bytes(stored)
    return content, tensors, stored


def read(folder, content):
    (folder / "model.json").write_text(json.dumps(content))
    return read_meshnet(folder)


def test_layers_weights_and_hash(tmp_path, model):
    content, tensors, stored = model
    network, variables, sha256 = read(tmp_path, content)
    assert network.layers == (MeshNetLayer(2, 3, 4, "elu"), MeshNetLayer(3, 1, 1, "linear"))
    assert sha256 == hashlib.sha256(stored).hexdigest()
    assert np.array_equal(variables["params"]["conv_0"]["kernel"], tensors["a/kernel"])
    assert np.array_equal(variables["params"]["conv_1"]["bias"], tensors["b/bias"])


def test_binary_by_the_name_in_the_manifest_comes_first(tmp_path, model):
    content, _, stored = model
    (tmp_path / "group1-shard1of1.bin").write_bytes(stored)
    (tmp_path / "model.bin").write_bytes(b"")
    assert read(tmp_path, content)[2] == hashlib.sha256(stored).hexdigest()


def test_what_is_no_meshnet_is_refused(tmp_path, model):
    content, _, stored = model
    (tmp_path / "model.bin").write_bytes(stored[:-4])
    with pytest.raises(UserError, match="bytes of weights where model.json lists"):
        read(tmp_path, content)
    (tmp_path / "model.bin").write_bytes(stored)
    layers = content["modelTopology"]["model_config"]["config"]["layers"]
    layers[1]["config"]["strides"] = [2, 2, 2]
    with pytest.raises(UserError, match="convolution a is not one that keeps the size"):
        read(tmp_path, content)
    layers[1] = {"class_name": "MaxPooling3D", "config": {"name": "pool"}}
    with pytest.raises(UserError, match="a layer pool of the kind MaxPooling3D"):
        read(tmp_path, content)
    with pytest.raises(UserError, match="no TensorFlow.js layers model"):
        read(tmp_path, {"layers": []})
    (tmp_path / "model.bin").unlink()
    del layers[1]
    with pytest.raises(UserError, match="do not lie beside it"):
        read(tmp_path, content)
