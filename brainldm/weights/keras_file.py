"""Reads the arrays of a Keras HDF5 file, of weights alone (`save_weights`) or of a whole model (`model_weights`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from brainldm.runtime.errors import UserError


def require_h5py() -> ModuleType:
    """The h5py module. Raises UserError when it is not installed."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise UserError(
            "Keras weights (.h5) are read with h5py, which is not installed. Install it with "
            "pip install 'brainldm[synthseg]', or give weights in a PyTorch file."
        ) from error


def read_keras_h5(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by `LAYER/WEIGHT`, as `unet_likelihood/kernel`, without the `:0` of TensorFlow.

    LAYER is the innermost group, which is the layer's name however deep a model nests it. No code of the file runs.
    Raises UserError when h5py is missing, or the file is absent, no HDF5 file, damaged, or holds two layers of one
    name.
    """
    h5py = require_h5py()
    path = Path(path)
    found: dict[str, np.ndarray] = {}

    def take(name: str, item) -> None:
        if not isinstance(item, h5py.Dataset) or name.count("/") < 1 or not np.issubdtype(item.dtype, np.number):
            return
        layer, weight = name.split("/")[-2:]
        key = f"{layer}/{weight.removesuffix(':0')}"
        if key in found:
            raise UserError(f"{path}: two arrays are called {key}, so which one is meant is not known.")
        found[key] = item[()]

    if not path.is_file():
        raise UserError(f"There is no file {path} to read weights from.")
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            root.visititems(take)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged, or no HDF5 file ({type(error).__name__}: {error}). Copy or download it again and "
            "compare its checksum."
        ) from error
    return found
