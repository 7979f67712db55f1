"""What a work dir holds, brought back to the host: its config, its newest state, a trained autoencoder."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from brainldm.diffusion.sampling import Sampling
from brainldm.runtime.errors import UserError, first_line
from brainldm.runtime.files import read_json
from brainldm.training import autoencoder, brain_age, diffusion, gan, vae_gan
from brainldm.training.checkpoints import Checkpoints
from brainldm.training.config import autoencoder_config, running_config, validate
from brainldm.training.run_info import read_run_info
from brainldm.weights.model_folder import load_model
from brainldm.weights.parameter_files import SPEC, params_sha256


@dataclasses.dataclass(frozen=True)
class TrainedAutoencoder:
    """Constructor arguments (dtype by name), the spacing in mm of its volumes, parameters on the host, their hash."""

    arguments: dict[str, Any]
    spacing_mm: int
    params: Any
    sha256: str


def load_autoencoder(path: str | Path) -> TrainedAutoencoder:
    """A trained autoencoder from a work dir of stage one (its newest checkpoint) or a model folder.

    Raises UserError when there is none.
    """
    if not path:
        raise UserError(
            "config.autoencoder is empty. Name the work dir of the autoencoder stage (or a model folder): "
            "--config.autoencoder=DIR."
        )
    if _is_model_folder(path):
        model = load_model(path)
        arguments, spacing, params = model.spec.autoencoder, int(model.spec.grid.spacing_mm[0]), model.autoencoder
    else:
        config = read_config(path, "autoencoder")
        arguments, spacing = config.model.to_dict(), config.data.spacing_mm
        params = restore_state(config, path).params
    return TrainedAutoencoder(arguments, spacing, params, params_sha256(params))


def autoencoder_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Constructor arguments (dtype by name) of the autoencoder that a diffusion run names, without its parameters.

    Where it names none yet, as a run that is only planned, those of the paper's.
    """
    if not config.autoencoder:
        return autoencoder_config().model.to_dict()
    if _is_model_folder(config.autoencoder):
        return load_model(config.autoencoder).spec.autoencoder
    return read_config(config.autoencoder, "autoencoder").model.to_dict()


def _is_model_folder(path: str | Path) -> bool:
    return (Path(path) / SPEC).exists()


def read_config(workdir: str | Path, stage: str | None = None) -> ml_collections.ConfigDict:
    """The resolved config of a work dir. Raises UserError when there is none, or it is not of `stage`."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir}: no config.json, so this is no work dir of a training run.")
    try:
        config = from_json(read_json(path))
        validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    if stage and config.stage != stage:
        raise UserError(f"{workdir}: the work dir of the {config.stage} stage; that of the {stage} stage is wanted.")
    return config


_CAME_LATER = {
    "autoencoder": {
        "model": {"architecture": "kl"},
        "every": {"fidelity": 0},
        "loss": {"equivariance": 0.0},
    },
    "diffusion": {
        "loss": {"times": "uniform", "covariate_dropout": 0.0},
        "sampling": Sampling().to_json(),
        "optimizer": {"power_ema": False},
        "every": {"ema_snapshots": 0},
    },
}
"""By stage and section of a config, what older versions did not have, and did."""


_CAME_LATER_ON_TOP = dict.fromkeys(("autoencoder", "diffusion"), {"init_from": ""})
"""The same of keys that are in no section."""


def from_json(content: dict[str, Any]) -> ml_collections.ConfigDict:
    """A config from its JSON form, in which tuples have become lists; what an older one lacks has its default.

    Raises UserError for what cannot be a config.
    """
    try:
        return _completed(content)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"holds no config of a training run ({first_line(error)}).") from error


def _completed(content: dict[str, Any]) -> ml_collections.ConfigDict:
    content = {**running_config().to_dict(), **_CAME_LATER_ON_TOP.get(content.get("stage"), {}), **content}
    for section, values in _CAME_LATER.get(content.get("stage"), {}).items():
        if section in content:
            content[section] = {**values, **content[section]}
    return ml_collections.ConfigDict(_tuples(content)).lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


_STATE_SHAPES = {
    "autoencoder": autoencoder.state_shapes,
    "lsgan": partial(gan.state_shapes, loss=gan.least_squares),
    "vae_gan": partial(gan.state_shapes, loss=vae_gan.losses),
    "brain_age": brain_age.state_shapes,
}


def restore_state(config: ml_collections.ConfigDict, workdir: str | Path) -> Any:
    """The newest state of a finished or running work dir, in numpy arrays, without reading its data."""
    if config.stage in _STATE_SHAPES:
        shapes = _STATE_SHAPES[config.stage](config)
    else:  # by what the run noted: its autoencoder may lie elsewhere by now
        shapes = diffusion.state_shapes(config, tuple(read_run_info(workdir, "latent_shape")["latent_shape"]))
    checkpoints = Checkpoints(workdir)
    try:
        state, _ = checkpoints.restore(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes))
    finally:
        checkpoints.close()
    return state
