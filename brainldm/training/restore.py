"""What a work dir holds, brought back: its config, its newest state, a trained autoencoder, each in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from brainldm.diffusion.sampling import Sampling
from brainldm.models.build import build
from brainldm.parallel.mesh import replicated
from brainldm.parallel.sharding import rules_of, state_shardings
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json
from brainldm.training import autoencoder as autoencoder_step
from brainldm.training import diffusion as diffusion_step
from brainldm.training.checkpoints import Checkpoints, abstract_like
from brainldm.training.config import covariates_of, running_config, validate
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import load_model


def shardings_of(shapes: Any, mesh: Mesh, config: ml_collections.ConfigDict, strict: bool = True) -> Any:
    """The place of every array of a state (or, not `strict`, of other parameters) under `config.mesh`."""
    return state_shardings(shapes, mesh, rules_of(config.mesh.rules), config.mesh.min_size, strict)


def placed(params: Any, mesh: Mesh, config: ml_collections.ConfigDict) -> Any:
    """Parameters that are not trained, from the host to their places."""
    params = jax.tree.map(np.asarray, params)
    return jax.device_put(params, shardings_of({"params": params}, mesh, config, strict=False)["params"])


def load_autoencoder(
    path: str, mesh: Mesh, run: ml_collections.ConfigDict | None = None
) -> tuple[dict[str, Any], int, Any]:
    """A trained autoencoder from a work dir of stage one (its newest checkpoint) or a model folder.

    Returns its constructor arguments (dtype by name), the spacing in mm that it was trained at, and its parameters,
    placed on `mesh` as the config `run` says (default: replicated). Raises UserError when there is none.
    """
    if not path:
        raise UserError(
            "config.autoencoder is empty. Name the work dir of the autoencoder stage (or a model folder): "
            "--config.autoencoder=DIR."
        )
    if (Path(path) / "model.json").exists():
        model = load_model(path)
        params = placed(model.autoencoder, mesh, run) if run else jax.device_put(model.autoencoder, replicated(mesh))
        return model.spec.autoencoder, int(model.spec.grid.spacing_mm[0]), params
    config = read_config(path)
    if config.stage != "autoencoder":
        raise UserError(f"{path}: the work dir of the {config.stage} stage; that of an autoencoder run is wanted.")
    state = restore_state(config, path, mesh, run)
    return config.model.to_dict(), config.data.spacing_mm, state.params


def read_config(workdir: str | Path) -> ml_collections.ConfigDict:
    """The resolved config of a work dir. Raises UserError when there is none."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir}: no config.json, so this is no work dir of a training run.")
    config = from_json(read_json(path))
    validate(config)
    return config


def from_json(content: dict[str, Any]) -> ml_collections.ConfigDict:
    """A config from its JSON form, in which tuples have become lists; what an older one lacks has its default."""
    content = {**running_config().to_dict(), **content}
    if "sampling" in content:
        content["sampling"] = {**Sampling().to_json(), **content["sampling"]}
    return ml_collections.ConfigDict(_tuples(content)).lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def restore_state(
    config: ml_collections.ConfigDict, workdir: str | Path, mesh: Mesh, run: ml_collections.ConfigDict | None = None
) -> Any:
    """The newest state of a finished or running work dir, without reading its data.

    It is placed on `mesh` as the config `run` says (default: replicated), whatever it was trained on.
    """
    shapes = _abstract_state(config, workdir)
    shardings = shardings_of(shapes, mesh, run, strict=False) if run else replicated(mesh)
    checkpoints = Checkpoints(workdir)
    try:
        state, _ = checkpoints.restore(abstract_like(shapes, shardings))
    finally:
        checkpoints.close()
    return state


def _abstract_state(config: ml_collections.ConfigDict, workdir: str | Path) -> Any:
    key = jax.random.key(config.seed)
    if config.stage == "autoencoder":
        init, _, _ = autoencoder_step.build(config, None)
        image = jax.ShapeDtypeStruct((1, *training_grid(config.data.spacing_mm).shape, 1), jnp.float32)
        return jax.eval_shape(init, key, image)
    facts = read_json(Path(workdir) / "run.json")
    shape, width = facts["latent_shape"], covariates_of(config).width
    unet = build("unet", diffusion_step.unet_arguments(config.model, shape[-1], width), num_devices=1)
    init, _, _ = diffusion_step.build(config, unet)
    batch = {
        "latent": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        "condition": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    return jax.eval_shape(lambda k, b: init(k, b, 1.0), key, batch)
