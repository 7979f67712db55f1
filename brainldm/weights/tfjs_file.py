"""Reads the layers of a TensorFlow.js model: model.json (topology, names and shapes of the weights) and its binary.

Format: https://www.tensorflow.org/js/guide/save_load, a "layers-model" with one group of float32 weights.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainldm.models.features.meshnet import MeshNet, MeshNetLayer, build_meshnet
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json


class TfjsModel(NamedTuple):
    """`layers`: class and config of each, in order; `tensors` by name, float32; `sha256` of the binary files."""

    layers: list[tuple[str, dict[str, Any]]]
    tensors: dict[str, np.ndarray]
    sha256: str


def read_tfjs(path: str | Path) -> TfjsModel:
    """Read a model from its folder (with model.json) or its JSON file; the binaries lie beside the JSON.

    Raises UserError when a file is absent, is no TensorFlow.js layers model, holds other types than float32, or has
    another length than its JSON says.
    """
    path = Path(path)
    path = path / "model.json" if path.is_dir() else path
    content = read_json(path)
    try:
        groups = content["weightsManifest"]
        layers = [
            (layer["class_name"], dict(layer["config"]))
            for layer in content["modelTopology"]["model_config"]["config"]["layers"]
        ]
        weights = [(w["name"], w["dtype"], tuple(w["shape"])) for group in groups for w in group["weights"]]
        names = [name for group in groups for name in group["paths"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no TensorFlow.js layers model ({error!r} is missing or odd in it). Give the JSON file that has "
            "modelTopology and weightsManifest; brainchop keeps it as model.json or model.json.tfjs.bak."
        ) from error
    files = [_binary(path, name) for name in names]
    odd = [name for name, dtype, _ in weights if dtype != "float32"]
    if odd:
        raise UserError(f"{path}: {len(odd)} weights are not float32 ({odd[0]}); quantised models are not read.")
    stored = b"".join(file.read_bytes() for file in files)
    expected = sum(4 * math.prod(shape) for _, _, shape in weights)
    if len(stored) != expected:
        raise UserError(
            f"{files[0] if files else path}: {len(stored)} bytes of weights where {path.name} lists {expected}. The "
            "two files do not belong together, or one was cut off."
        )
    values, start, tensors = np.frombuffer(stored, "<f4"), 0, {}
    for name, _, shape in weights:
        count = math.prod(shape)
        tensors[name] = values[start : start + count].reshape(shape)
        start += count
    return TfjsModel(layers, tensors, hashlib.sha256(stored).hexdigest())


def _binary(json_file: Path, name: Any) -> Path:
    """The binary `name` beside its JSON; model.bin where it was renamed, as brainchop does."""
    for candidate in (json_file.parent / Path(str(name)).name, json_file.parent / "model.bin"):
        if candidate.is_file():
            return candidate
    raise UserError(f"{json_file}: its weights {name} do not lie beside it (nor does model.bin). Copy them there.")


def read_meshnet(path: str | Path) -> tuple[MeshNet, dict[str, Any], str]:
    """A MeshNet, its variables and the SHA-256 of its weights, from a TensorFlow.js model (see `read_tfjs`).

    Raises UserError for a model that is not a chain of three-dimensional convolutions of stride 1 that keep the size,
    each followed by an activation or none.
    """
    model = read_tfjs(path)
    layers: list[MeshNetLayer] = []
    kernels, biases = [], []
    for kind, config in model.layers:
        name = str(config.get("name"))
        if kind == "Conv3D":
            dilation, kernel = set(config.get("dilation_rate", [1])), model.tensors.get(f"{name}/kernel")
            same = config.get("padding") == "same" and set(config.get("strides", [1])) == {1}
            if not same or len(dilation) != 1 or kernel is None or kernel.ndim != 5:
                raise UserError(f"{path}: no MeshNet, its convolution {name} is not one that keeps the size.")
            kernels.append(kernel)
            biases.append(model.tensors.get(f"{name}/bias", np.zeros(kernel.shape[-1:], np.float32)))
            activation = config.get("activation", "linear")
            layers.append(MeshNetLayer(kernel.shape[-1], kernel.shape[0], dilation.pop(), activation))
        elif kind == "Activation" and layers and layers[-1].activation == "linear":
            layers[-1] = layers[-1]._replace(activation=config.get("activation", "linear"))
        elif kind != "InputLayer":
            raise UserError(f"{path}: no MeshNet, it has a layer {name} of the kind {kind}.")
    if not layers:
        raise UserError(f"{path}: no MeshNet, it has no convolution.")
    return *build_meshnet(layers, kernels, biases), model.sha256
