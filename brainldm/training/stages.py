"""The two stages as the loop sees them: data, pure functions, validation and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from brainldm.data.latents import CachedLatents, SampledLatents
from brainldm.data.pipeline import LatentSource, batches
from brainldm.datasets.scans import Excluded, Scan
from brainldm.diffusion.sampling import Sampling, decode_latents, sample_latents
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.build import build
from brainldm.parallel.mesh import (
    batch_constraint,
    check_volume,
    data_only_mesh,
    fetch_to_host,
    num_batch_shards,
    process_shard,
    replicated,
    shard_batch,
)
from brainldm.parallel.sharding import make_placement, rules_of
from brainldm.reports.mosaics import mosaic
from brainldm.runtime.errors import UserError
from brainldm.training import autoencoder as autoencoder_step
from brainldm.training import diffusion as diffusion_step
from brainldm.training.config import covariates_of
from brainldm.training.inputs import (
    augment_elements,
    conditions_of,
    latent_cache,
    padded_batches,
    read_sides,
    scans_sha256,
    volume_sources,
)
from brainldm.training.perceptual import make_perceptual
from brainldm.training.restore import load_autoencoder, placed, shardings_of
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import params_sha256

PICTURES = 4
"""Brains in the pictures that a run draws."""

VOXELS_PER_DEVICE = 160 * 224 * 160
"""Voxels that a device encodes at once: one full-size volume (or its part of one), or more small ones."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the training loop needs to know of a stage.

    `mesh` is where its state and batches lie; shardings(shapes): the place of every array of the state.
    init(): a fresh state. train_step(state, batch, frozen): the next state and metrics. validate(state): metrics with
    "loss" among them. pictures(state): images by name. `names` are the scans that a batch's "index" points to;
    `excluded` what of the dataset was left out.
    """

    mesh: Mesh
    shardings: Callable[[Any], Any]
    init: Callable[[], Any]
    train_step: Callable[[Any, dict, Any], tuple[Any, dict]]
    frozen: Any
    train: grain.MapDataset
    names: list[str]
    validate: Callable[[Any], dict[str, float]]
    pictures: Callable[[Any], dict[str, Image.Image]]
    facts: dict[str, Any]
    excluded: tuple[Excluded, ...] = ()


def make_stage(config: ml_collections.ConfigDict, mesh: Mesh, workdir: str | Path) -> Stage:
    """The stage that `config` describes."""
    return autoencoder_stage(config, mesh) if config.stage == "autoencoder" else diffusion_stage(config, mesh, workdir)


def _encoding_batch(shape: tuple[int, ...], mesh: Mesh) -> int:
    parts = num_batch_shards(mesh)
    return parts * int(np.clip(VOXELS_PER_DEVICE * (mesh.size // parts) // np.prod(shape), 1, 8))


def _at_least(count: int, mesh: Mesh) -> int:
    """The smallest batch of `count` rows or more that can be split over a mesh."""
    return -(-count // num_batch_shards(mesh)) * num_batch_shards(mesh)


def autoencoder_stage(config: ml_collections.ConfigDict, mesh: Mesh) -> Stage:
    """Stage one."""
    shape = training_grid(config.data.spacing_mm).shape
    check_volume(shape, max(len(config.model.channels) - 1, config.discriminator.num_layers), mesh)
    place = make_placement(mesh, rules_of(config.mesh.rules), config.mesh.min_size)
    sides, excluded = read_sides(config)
    train, validation = volume_sources(config, sides)
    perceptual, frozen = make_perceptual(
        config.loss.perceptual, tuple(config.loss.perceptual_files), config.loss.perceptual_ratio
    )
    init, train_step, reconstruct = autoencoder_step.build(config, perceptual, place)
    size, share = _encoding_batch(shape, mesh), process_shard(mesh)
    threads = config.data.threads

    @partial(jax.jit, out_shardings=replicated(mesh))
    def errors(params, image):
        reconstruction, mu, sigma = reconstruct(params, image)
        axes = tuple(range(1, image.ndim))
        clipped = jnp.clip(reconstruction, 0, 1)
        kl = jax.vmap(lambda m, s: autoencoder_step.kl_divergence(m[None], s[None]))(mu, sigma)
        return {
            "l1": jnp.mean(jnp.abs(reconstruction - image), axes),
            "mse": jnp.mean(jnp.square(clipped - image), axes),
            "kl": kl,
        }

    def validate_state(state) -> dict[str, float]:
        collected: dict[str, list] = {"l1": [], "mse": [], "kl": []}
        for batch, real in padded_batches(validation, size, threads, share):
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

    @partial(jax.jit, out_shardings=replicated(mesh))
    def pairs(params, image):
        reconstruction, _, _ = reconstruct(params, image)
        return image[:PICTURES, ..., 0], jnp.clip(reconstruction[:PICTURES, ..., 0], 0, 1)

    def pictures(state) -> dict[str, Image.Image]:
        batch, real = next(padded_batches(validation, _at_least(PICTURES, mesh), threads, share))
        image, output = map(np.asarray, pairs(state.params, shard_batch(batch["image"], mesh)))
        shown = min(real, PICTURES)
        return {
            "reconstructions": mosaic(
                [("held-out scans", list(image[:shown])), ("reconstructed", list(output[:shown]))]
            )
        }

    return Stage(
        mesh=mesh,
        shardings=lambda shapes: shardings_of(shapes, mesh, config),
        init=lambda: init(jax.random.key(config.seed), jnp.zeros((1, *shape, 1))),
        train_step=train_step,
        frozen=placed(frozen, mesh, config),
        train=batches(
            train,
            batch_size=config.batch_size,
            seed=config.seed,
            transform=augment_elements(config),
            process_index=share[0],
            process_count=share[1],
        ),
        names=[record.name for record in sides["train"]],
        validate=validate_state,
        pictures=pictures,
        facts=_scan_facts(sides),
        excluded=excluded,
    )


def _scan_facts(sides: dict[str, list[Scan]]) -> dict[str, Any]:
    return {
        "scans_training": len(sides["train"]),
        "scans_validation": len(sides["validation"]),
        "scans_sha256": scans_sha256(sides["train"]),
    }


def encoder(autoencoder: AutoencoderKL, params: Any, mesh: Mesh) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Posterior means and standard deviations, [B, d, h, w, C] each, of images [B, D, H, W, 1].

    With several processes each gives its own rows of the images and gets all rows of the result.
    """
    constrain = batch_constraint(mesh)

    @partial(jax.jit, out_shardings=replicated(mesh))
    def function(params, image):
        params = jax.lax.with_sharding_constraint(params, replicated(mesh))
        return tuple(map(constrain, autoencoder.apply({"params": params}, image, method="encode")))

    return lambda images: jax.device_get(function(params, shard_batch(images, mesh)))


def diffusion_stage(config: ml_collections.ConfigDict, mesh: Mesh, workdir: str | Path) -> Stage:
    """Stage two. What of the dataset the latent cache lacks is encoded with the frozen autoencoder first."""
    flat = data_only_mesh(mesh)  # where the denoising network lies; the autoencoder's mesh may split volumes
    place = make_placement(flat, rules_of(config.mesh.rules), config.mesh.min_size)
    arguments, spacing, frozen_params = load_autoencoder(config.autoencoder, mesh, config)
    if spacing != config.data.spacing_mm:
        raise UserError(
            f"config.data.spacing_mm is {config.data.spacing_mm}, but the autoencoder {config.autoencoder} was "
            f"trained at {spacing} mm. Use the same."
        )
    check_volume(training_grid(spacing).shape, len(arguments["channels"]) - 1, mesh)
    sides, excluded = read_sides(config, need_images=False)
    autoencoder = build("autoencoder", arguments, num_devices=mesh.size)
    encode = encoder(autoencoder, frozen_params, mesh)
    image = jax.ShapeDtypeStruct((1, *training_grid(spacing).shape, 1), jnp.float32)
    abstract = jax.eval_shape(lambda p, x: autoencoder.apply({"params": p}, x, method="encode"), frozen_params, image)
    shape, autoencoder_sha256 = abstract[0].shape[1:], params_sha256(fetch_to_host(frozen_params))
    cache = latent_cache(
        config,
        workdir,
        sides,
        encode,
        batch_size=_encoding_batch(training_grid(spacing).shape, mesh),
        process_shard=process_shard(mesh),
        autoencoder={"autoencoder_sha256": autoencoder_sha256, "dtype": str(arguments["dtype"])},
        latent_shape=shape,
    )
    names = {side: [record.name for record in records] for side, records in sides.items()}
    conditions = {side: conditions_of(config, records) for side, records in sides.items()}
    validation = LatentSource(CachedLatents(cache, names["validation"]), conditions["validation"])
    if cache.variants > 1 or config.latents.sample:
        train = SampledLatents(cache, names["train"], conditions["train"], config.latents.sample)
    else:
        train = LatentSource(CachedLatents(cache, names["train"]), conditions["train"])
    scale = config.latent_scale or 1.0 / cache.std(names["train"])
    unet_arguments = diffusion_step.unet_arguments(config.model, shape[-1], covariates_of(config).width)
    unet = build("unet", unet_arguments, num_devices=flat.size)
    init, train_step, loss = diffusion_step.build(config, unet, place)
    loss = jax.jit(loss, out_shardings=replicated(flat))
    schedule = diffusion_step.schedule_of(config)
    size, share = num_batch_shards(flat) * max(1, min(8, len(validation))), process_shard(flat)
    sampling = Sampling(**config.sampling)

    def decode(frozen_params, latents, latent_scale):
        frozen_params = jax.lax.with_sharding_constraint(frozen_params, replicated(mesh))
        parts, constrain = num_batch_shards(mesh), batch_constraint(mesh)
        return decode_latents(autoencoder, frozen_params, latents, latent_scale, at_once=parts, constrain=constrain)

    @partial(jax.jit, out_shardings=replicated(mesh))
    def pairs(params, frozen_params, latent_scale, batch, number):
        """Held-out latents decoded, and samples drawn for the same conditions with the noise of `number`."""
        keys = jax.random.split(jax.random.key(config.seed), PICTURES)[number % PICTURES]
        latents = sample_latents(
            unet,
            place.whole(params),
            schedule,
            sampling,
            batch["condition"],
            keys,
            shape,
            prediction=config.loss.prediction,
            constrain=place.batch,
        )
        real, drawn = decode(frozen_params, batch["latent"], 1.0), decode(frozen_params, latents, latent_scale)
        return real[:PICTURES], drawn[:PICTURES]

    def validate_state(state) -> dict[str, float]:
        found = []
        for batch, real in padded_batches(validation, size, share=share):
            found.extend(np.asarray(loss(state.ema, state.latent_scale, shard_batch(batch, flat)), np.float64)[:real])
        return {"loss": float(np.mean(found))}

    def pictures(state) -> dict[str, Image.Image]:
        number = np.arange(_at_least(PICTURES, flat))
        number = np.split(number.astype(np.int32), share[1])[share[0]]  # of the rows that this process gives
        rows = [validation[int(i) % PICTURES % len(validation)] for i in number]
        batch = {key: np.stack([row[key] for row in rows]) for key in ("latent", "condition")}
        arrays = shard_batch((batch, number), flat)
        real, drawn = pairs(state.ema, frozen_params, state.latent_scale, *arrays)
        return {
            "samples": mosaic(
                [
                    ("held-out scans, reconstructed", list(np.asarray(real))),
                    ("generated with the same conditions", list(np.asarray(drawn))),
                ]
            )
        }

    def init_state():
        batch = {"latent": jnp.zeros((1, *shape)), "condition": jnp.zeros((1, covariates_of(config).width))}
        return init(jax.random.key(config.seed), batch, scale)

    return Stage(
        mesh=flat,
        shardings=lambda shapes: shardings_of(shapes, flat, config),
        init=init_state,
        train_step=train_step,
        frozen=None,
        train=batches(
            train,
            batch_size=config.batch_size,
            seed=config.seed,
            transform=train.sample if isinstance(train, SampledLatents) else None,
            process_index=share[0],
            process_count=share[1],
        ),
        names=names["train"],
        validate=validate_state,
        pictures=pictures,
        facts={
            **_scan_facts(sides),
            "observed": covariates_of(config).observed_in([scan.covariates for scan in sides["train"]]),
            "latent_scale": scale,
            "latent_shape": list(shape),
            "autoencoder_sha256": autoencoder_sha256,
            "latents": str(cache.folder),
        },
        excluded=excluded,
    )
