"""The two stages as the loop sees them: data, pure functions, validation and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from brainldm.console import Counter, say
from brainldm.data.bids import Record, read_dataset, read_json
from brainldm.data.grids import training_grid
from brainldm.data.mosaics import mosaic
from brainldm.data.pipeline import LatentSource, VolumeSource, batches, split
from brainldm.diffusion.latent import decode_latents, sample_latents
from brainldm.errors import UserError
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.parallel.mesh import replicated, shard_batch
from brainldm.training import autoencoder as stage_one
from brainldm.training import diffusion as stage_two
from brainldm.training.checkpoints import Checkpoints, abstract_like
from brainldm.training.config import covariates_of, validate
from brainldm.training.perceptual import make_perceptual
from brainldm.weights.model_folder import load_model, params_sha256

PICTURES = 4
"""Brains in the pictures that a run draws."""

VOXELS_PER_DEVICE = 160 * 224 * 160
"""Voxels that a device encodes at once: one full-size volume, or more small ones."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the training loop needs to know of a stage.

    init(): a fresh state. train_step(state, batch, frozen): the next state and metrics. validate(state): metrics with
    "loss" among them. pictures(state): images by name. `names` are the scans that a batch's "index" points to.
    """

    init: Callable[[], Any]
    train_step: Callable[[Any, dict, Any], tuple[Any, dict]]
    frozen: Any
    train: grain.MapDataset
    names: list[str]
    validate: Callable[[Any], dict[str, float]]
    pictures: Callable[[Any], dict[str, Image.Image]]
    facts: dict[str, Any]


def make_stage(config: ml_collections.ConfigDict, mesh: Mesh) -> Stage:
    """The stage that `config` describes."""
    return autoencoder_stage(config, mesh) if config.stage == "autoencoder" else diffusion_stage(config, mesh)


def _sources(config: ml_collections.ConfigDict) -> tuple[list[list[Record]], list[VolumeSource]]:
    """Training and validation records and their volumes."""
    covariates = covariates_of(config)
    grid = training_grid(config.data.spacing_mm)
    records = read_dataset(config.data.path, covariates)
    outside = [f"{r.name}: {', '.join(o)}" for r in records if (o := covariates.outside(r.covariates))]
    if outside:
        say(
            f"{len(outside)} of {len(records)} scans lie outside the range of a condition and are kept; their codes "
            f"leave [0, 1] ({outside[0]}). config.covariates.ranges sets the ranges."
        )
    sides = list(split(records, config.data.validation_fraction))
    sources = [
        VolumeSource(
            side,
            covariates.encode([r.covariates for r in side]),
            grid,
            config.data.scaling,
            config.data.cache_gib,
        )
        for side in sides
    ]
    for what, source in zip(("reading scans to train on", "reading held-out scans"), sources, strict=True):
        with Counter(what, len(source)) as progress:
            source.preload(progress)
    return sides, sources


def _padded_batches(source: Any, size: int):
    """Batches of one fixed size over the whole source, and how many rows of each are real."""
    for start in range(0, len(source), size):
        rows = [source[min(i, len(source) - 1)] for i in range(start, start + size)]
        yield {k: np.stack([row[k] for row in rows]) for k in rows[0]}, min(size, len(source) - start)


def _encoding_batch(shape: tuple[int, ...], mesh: Mesh) -> int:
    return mesh.size * int(np.clip(VOXELS_PER_DEVICE // np.prod(shape), 1, 8))


def autoencoder_stage(config: ml_collections.ConfigDict, mesh: Mesh) -> Stage:
    """Stage one."""
    (train_records, _), (train, validation) = _sources(config)
    perceptual, frozen = make_perceptual(
        config.loss.perceptual, tuple(config.loss.perceptual_files), config.loss.perceptual_ratio
    )
    init, train_step, reconstruct = stage_one.build(config, perceptual)
    shape = training_grid(config.data.spacing_mm).shape
    size = _encoding_batch(shape, mesh)
    reconstruct = jax.jit(reconstruct)

    @jax.jit
    def errors(params, image):
        reconstruction, mu, sigma = reconstruct(params, image)
        axes = tuple(range(1, image.ndim))
        clipped = jnp.clip(reconstruction, 0, 1)
        kl = jax.vmap(lambda m, s: stage_one.kl_divergence(m[None], s[None]))(mu, sigma)
        return {
            "l1": jnp.mean(jnp.abs(reconstruction - image), axes),
            "mse": jnp.mean(jnp.square(clipped - image), axes),
            "kl": kl,
        }

    def validate_state(state) -> dict[str, float]:
        collected: dict[str, list] = {"l1": [], "mse": [], "kl": []}
        for batch, real in _padded_batches(validation, size):
            values = errors(state.params, shard_batch(batch["image"], mesh))
            for name, value in values.items():
                collected[name].extend(np.asarray(value, np.float64)[:real])
        l1, kl = np.mean(collected["l1"]), np.mean(collected["kl"])
        return {
            "loss": l1 + config.loss.kl_weight * kl,
            "l1": l1,
            "kl": kl,
            "psnr": float(np.mean(-10 * np.log10(collected["mse"]))),
        }

    def pictures(state) -> dict[str, Image.Image]:
        batch, real = next(_padded_batches(validation, max(PICTURES, mesh.size)))
        output = np.asarray(reconstruct(state.params, shard_batch(batch["image"], mesh))[0])
        real = min(real, PICTURES)
        return {
            "reconstructions": mosaic(
                [
                    ("held-out scans", list(batch["image"][:real, ..., 0])),
                    ("reconstructed", list(np.clip(output[:real, ..., 0], 0, 1))),
                ]
            )
        }

    image = jnp.zeros((1, *shape, 1))
    return Stage(
        init=lambda: init(jax.random.key(config.seed), image),
        train_step=train_step,
        frozen=jax.device_put(frozen, replicated(mesh)),
        train=batches(train, batch_size=config.batch_size, seed=config.seed),
        names=[record.name for record in train_records],
        validate=validate_state,
        pictures=pictures,
        facts={"scans_training": len(train), "scans_validation": len(validation)},
    )


def load_autoencoder(path: str, mesh: Mesh) -> tuple[dict[str, Any], int, Any]:
    """A trained autoencoder from a work dir of stage one (its newest checkpoint) or a model folder.

    Returns its constructor arguments (dtype by name), the spacing in mm that it was trained at, and its parameters.
    Raises UserError when there is none.
    """
    if not path:
        raise UserError(
            "config.autoencoder is empty. Name the work dir of the autoencoder stage (or a model folder): "
            "--config.autoencoder=DIR."
        )
    if (Path(path) / "model.json").exists():
        model = load_model(path)
        return model.spec.autoencoder, int(model.spec.grid.spacing_mm[0]), model.autoencoder
    config = read_config(path)
    if config.stage != "autoencoder":
        raise UserError(f"{path}: the work dir of the {config.stage} stage; that of an autoencoder run is wanted.")
    state = restore_state(config, path, mesh)
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
    """A config from its JSON form, in which tuples have become lists."""
    return ml_collections.ConfigDict(_tuples(content)).lock()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def restore_state(config: ml_collections.ConfigDict, workdir: str | Path, mesh: Mesh) -> Any:
    """The newest state of a finished or running work dir, without reading its data."""
    checkpoints = Checkpoints(workdir)
    try:
        state, _ = checkpoints.restore(abstract_like(_abstract_state(config, workdir), replicated(mesh)))
    finally:
        checkpoints.close()
    return state


def _abstract_state(config: ml_collections.ConfigDict, workdir: str | Path) -> Any:
    key = jax.random.key(config.seed)
    if config.stage == "autoencoder":
        init, _, _ = stage_one.build(config, None)
        image = jax.ShapeDtypeStruct((1, *training_grid(config.data.spacing_mm).shape, 1), jnp.float32)
        return jax.eval_shape(init, key, image)
    facts = read_json(Path(workdir) / "run.json")
    shape, width = facts["latent_shape"], len(covariates_of(config))
    unet = stage_two.make_unet(stage_two.unet_arguments(config.model, shape[-1], width))
    init, _, _ = stage_two.build(config, unet)
    batch = {
        "latent": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
        "condition": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    return jax.eval_shape(lambda k, b: init(k, b, 1.0), key, batch)


def encode(autoencoder: AutoencoderKL, params: Any, source: VolumeSource, mesh: Mesh) -> np.ndarray:
    """Posterior means of every volume, float32 [N, d, h, w, C].

    The means, not samples: stored samples would hold posterior noise that no network can learn.
    """
    function = jax.jit(lambda params, image: autoencoder.apply({"params": params}, image, method="encode")[0])
    size = _encoding_batch(source[0]["image"].shape, mesh)
    found = []
    with Counter("encoding", len(source)) as progress:
        for batch, real in _padded_batches(source, size):
            found.append(np.asarray(function(params, shard_batch(batch["image"], mesh)))[:real])
            progress(sum(map(len, found)))
    return np.concatenate(found)


def diffusion_stage(config: ml_collections.ConfigDict, mesh: Mesh) -> Stage:
    """Stage two. Encodes the dataset with the frozen autoencoder first."""
    arguments, spacing, frozen_params = load_autoencoder(config.autoencoder, mesh)
    if spacing != config.data.spacing_mm:
        raise UserError(
            f"config.data.spacing_mm is {config.data.spacing_mm}, but the autoencoder {config.autoencoder} was "
            f"trained at {spacing} mm. Use the same."
        )
    (train_records, _), volumes = _sources(config)
    autoencoder = AutoencoderKL(**{**arguments, "dtype": jnp.dtype(arguments["dtype"])})
    train, validation = (
        LatentSource(encode(autoencoder, frozen_params, source, mesh), source.conditions) for source in volumes
    )
    shape = train[0]["latent"].shape
    scale = config.latent_scale or float(1.0 / np.std(train.latents, dtype=np.float64))
    unet = stage_two.make_unet(stage_two.unet_arguments(config.model, shape[-1], len(covariates_of(config))))
    init, train_step, loss = stage_two.build(config, unet)
    loss = jax.jit(loss)
    schedule = stage_two.schedule_of(config)
    size = mesh.size * max(1, min(8, len(validation)))
    sampling = config.sampling
    # guidance 1 is the plain conditional model: leave the unconditional half out
    guidance = None if sampling.guidance == 1.0 else sampling.guidance

    @jax.jit
    def sample(params, frozen_params, latent_scale, condition, keys):
        latents = sample_latents(
            unet,
            params,
            schedule,
            condition,
            keys,
            shape,
            prediction=config.loss.prediction,
            num_steps=sampling.num_steps,
            eta=sampling.eta,
            guidance=guidance,
        )
        return decode_latents(autoencoder, frozen_params, latents, latent_scale)

    def validate_state(state) -> dict[str, float]:
        found = []
        for batch, real in _padded_batches(validation, size):
            found.extend(np.asarray(loss(state.ema, state.latent_scale, shard_batch(batch, mesh)), np.float64)[:real])
        return {"loss": float(np.mean(found))}

    def pictures(state) -> dict[str, Image.Image]:
        chosen = np.arange(PICTURES) % len(validation)
        rows = [validation[int(i)]["condition"] for i in chosen]
        keys = jax.random.split(jax.random.key(config.seed), PICTURES)
        drawn = sample(state.ema, frozen_params, state.latent_scale, jnp.asarray(np.stack(rows)), keys)
        real = np.stack([volumes[1][int(i)]["image"][..., 0] for i in chosen])
        return {
            "samples": mosaic(
                [
                    ("held-out scans", list(real)),
                    ("generated with the same conditions", list(np.asarray(drawn))),
                ]
            )
        }

    batch = {"latent": jnp.zeros((1, *shape)), "condition": jnp.zeros((1, len(covariates_of(config))))}
    return Stage(
        init=lambda: init(jax.random.key(config.seed), batch, scale),
        train_step=train_step,
        frozen=None,
        train=batches(train, batch_size=config.batch_size, seed=config.seed),
        names=[record.name for record in train_records],
        validate=validate_state,
        pictures=pictures,
        facts={
            "scans_training": len(train),
            "scans_validation": len(validation),
            "latent_scale": scale,
            "latent_shape": list(shape),
            "autoencoder_sha256": params_sha256(frozen_params),
        },
    )
