"""The programs of a run as functions of shapes: nothing here holds an array, so any machine can be planned for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brainldm.diffusion.sampling import Sampling, decode_latents, sample_latents
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.build import build
from brainldm.parallel.mesh import (
    BATCH,
    VOLUMES,
    batch_constraint,
    check_volume,
    data_only_mesh,
    num_batch_shards,
    replicated,
)
from brainldm.parallel.sharding import make_placement, rules_of, state_shardings
from brainldm.training import autoencoder as autoencoder_step
from brainldm.training import diffusion as diffusion_step
from brainldm.training.config import autoencoder_config, covariates_of
from brainldm.training.perceptual import perceptual_shapes
from brainldm.training.restore import read_config
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import load_model


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile, the shapes that it is given (with shardings), and how many rows its batch has.

    `state` is the part of the arguments that stays on the devices between calls: training state or parameters.
    """

    function: Callable
    arguments: tuple
    out_shardings: Any
    donate: tuple[int, ...]
    batch: int
    state: Any


def make_program(name: str, config: ml_collections.ConfigDict, mesh: Mesh, batch: int | None) -> Program:
    """One of plan.PROGRAMS. `batch` rows in all; None: the config's (train), or one row for each part of the mesh."""
    if config.stage == "autoencoder" and name == "train":
        return _autoencoder_step(config, mesh, batch or config.batch_size)
    if name == "train":
        return _diffusion_step(config, mesh, batch or config.batch_size)
    if name == "sample":
        return _sample(config, mesh, batch or num_batch_shards(data_only_mesh(mesh)))
    return _encode_or_decode(name, config, mesh, batch or num_batch_shards(mesh))


def volume_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """Voxels of the volumes of a run."""
    return training_grid(config.data.spacing_mm).shape


def autoencoder_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Constructor arguments (dtype by name) of the autoencoder of a run: its own, the one named, or the paper's."""
    if config.stage == "autoencoder":
        return config.model.to_dict()
    if not config.autoencoder:
        return autoencoder_config().model.to_dict()
    if (Path(config.autoencoder) / "model.json").exists():
        return load_model(config.autoencoder).spec.autoencoder
    return read_config(config.autoencoder).model.to_dict()


def latent_shape(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """[d, h, w, C] of the latents of a run."""
    model = autoencoder_arguments(config)
    factor = 2 ** (len(model["channels"]) - 1)
    return (*(side // factor for side in volume_shape(config)), model["latent_channels"])


def _shapes(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _everywhere(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)


def _array(shape: tuple[int, ...], mesh: Mesh, spec: P, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _autoencoder_step(config: ml_collections.ConfigDict, mesh: Mesh, batch: int) -> Program:
    shape = volume_shape(config)
    check_volume(shape, max(len(config.model.channels) - 1, config.discriminator.num_layers), mesh)
    rules, size = rules_of(config.mesh.rules), config.mesh.min_size
    perceptual, frozen = perceptual_shapes(config.loss.perceptual, config.loss.perceptual_ratio)
    init, step, _ = autoencoder_step.build(config, perceptual, make_placement(mesh, rules, size))
    shapes = jax.eval_shape(init, _key(), jax.ShapeDtypeStruct((1, *shape, 1), jnp.float32))
    shardings = state_shardings(shapes, mesh, rules, size)
    if frozen is not None:
        places = state_shardings({"params": frozen}, mesh, rules, size, strict=False)["params"]
        frozen = _shapes(frozen, places)
    state = _shapes(shapes, shardings)
    image = _array((batch, *shape, 1), mesh, VOLUMES)
    return Program(step, (state, {"image": image}, frozen), (shardings, None), (0,), batch, state)


def _diffusion_step(config: ml_collections.ConfigDict, mesh: Mesh, batch: int) -> Program:
    mesh = data_only_mesh(mesh)
    rules, size = rules_of(config.mesh.rules), config.mesh.min_size
    latent, width = latent_shape(config), covariates_of(config).width
    unet = build("unet", diffusion_step.unet_arguments(config.model, latent[-1], width), num_devices=mesh.size)
    init, step, _ = diffusion_step.build(config, unet, make_placement(mesh, rules, size))
    one = {
        "latent": jax.ShapeDtypeStruct((1, *latent), jnp.float32),
        "condition": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    shapes = jax.eval_shape(lambda key, row: init(key, row, 1.0), _key(), one)
    shardings = state_shardings(shapes, mesh, rules, size)
    state = _shapes(shapes, shardings)
    arrays = {
        "latent": _array((batch, *latent), mesh, VOLUMES),
        "condition": _array((batch, width), mesh, BATCH),
    }
    return Program(step, (state, arrays, None), (shardings, None), (0,), batch, state)


def _autoencoder(config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[AutoencoderKL, Any]:
    """The network and the shapes of its parameters, whole on every device."""
    arguments = autoencoder_arguments(config)
    network = build("autoencoder", arguments, num_devices=mesh.size)
    image = jax.ShapeDtypeStruct((1, *volume_shape(config), network.in_channels), jnp.float32)
    params = jax.eval_shape(network.init, _key(), image)["params"]
    return network, _everywhere(params, mesh)


def _encode_or_decode(name: str, config: ml_collections.ConfigDict, mesh: Mesh, batch: int) -> Program:
    check_volume(volume_shape(config), len(autoencoder_arguments(config)["channels"]) - 1, mesh)
    network, params = _autoencoder(config, mesh)
    constrain = batch_constraint(mesh)

    def encode(params, image):
        return tuple(map(constrain, network.apply({"params": params}, constrain(image), method="encode")))

    def decode(params, latents):
        return decode_latents(network, params, latents, 1.0, at_once=num_batch_shards(mesh), constrain=constrain)

    shape = (batch, *volume_shape(config), 1) if name == "encode" else (batch, *latent_shape(config))
    function = encode if name == "encode" else decode
    return Program(function, (params, _array(shape, mesh, VOLUMES)), None, (), batch, params)


def _sample(config: ml_collections.ConfigDict, mesh: Mesh, batch: int) -> Program:
    mesh = data_only_mesh(mesh)
    latent, width = latent_shape(config), covariates_of(config).width
    unet = build("unet", diffusion_step.unet_arguments(config.model, latent[-1], width), num_devices=mesh.size)
    schedule, sampling = diffusion_step.schedule_of(config), Sampling(**config.sampling)
    row = [jax.ShapeDtypeStruct(s, d) for s, d in (((1, *latent), jnp.float32), ((1,), jnp.int32))]
    condition = jax.ShapeDtypeStruct((1, width), jnp.float32)
    params = _everywhere(jax.eval_shape(unet.init, _key(), *row, condition)["params"], mesh)

    def sample(params, condition, keys):
        return sample_latents(
            unet,
            params,
            schedule,
            sampling,
            condition,
            keys,
            latent,
            prediction=config.loss.prediction,
            constrain=batch_constraint(mesh),
        )

    keys = jax.ShapeDtypeStruct((batch,), _key().dtype, sharding=NamedSharding(mesh, BATCH))
    return Program(sample, (params, _array((batch, width), mesh, BATCH), keys), None, (), batch, params)
