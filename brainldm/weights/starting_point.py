"""Networks of a released model as the start of a training run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.weights.model_folder import Model, load_model
from brainldm.weights.parameter_files import check_params, params_sha256

NETWORKS = {"autoencoder": "autoencoder", "unet": "denoising network"}

_FREE = ("dtype", "remat")
"""Arguments that change how a network is computed and not what it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class StartingPoint:
    """The model that training starts from, and the parameters of one of its networks, on the host."""

    model: Model
    params: Any

    @property
    def autoencoder_sha256(self) -> str:
        """The hash of the model's autoencoder, as runs note that of theirs."""
        return params_sha256(self.model.autoencoder)

    def placed_like(self, params: Any) -> Any:
        """The parameters where those of a state lie, in their types."""

        def place(value: np.ndarray, like: jax.Array) -> jax.Array:
            value = np.array(value, like.dtype)  # a copy of its own: a step writes into what it was given
            return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])

        return jax.tree.map(place, self.params, params)


def starting_point(folder: str | Path, network: str, arguments: Mapping[str, Any], shapes: Any) -> StartingPoint:
    """The network ("autoencoder" or "unet") of a model folder, for one with these constructor arguments and shapes.

    Raises UserError when the folder cannot be read, or its network is another one.
    """
    model = load_model(folder)
    params, theirs = getattr(model, network), _plain(getattr(model.spec, network))
    here = _plain(dict(arguments))
    common = sorted((theirs.keys() & here.keys()) - set(_FREE))
    different = [f"{name} {theirs[name]!r} there, {here[name]!r} here" for name in common if theirs[name] != here[name]]
    try:
        check_params(params, shapes, str(folder))
    except UserError as error:
        different = different or [str(error)]
    if different:
        raise UserError(
            f"config.init_from={folder}: its {NETWORKS[network]} is another network than config.model describes "
            f"({'; '.join(different[:4])}). Give config.model the values of its model.json, or leave config.init_from "
            "empty."
        )
    return StartingPoint(model, params)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them: tuples are lists there."""
    return json.loads(json.dumps(arguments))
