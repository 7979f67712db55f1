"""From conditions to volumes with a released model, as one compiled program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling, decode_latents, sample_latents
from brainldm.diffusion.schedule import make_chain, make_schedule
from brainldm.generation.background import clear_background
from brainldm.parallel.mesh import batch_constraint, make_mesh, replicated
from brainldm.runtime.console import log
from brainldm.runtime.format import format_duration
from brainldm.weights.gan_folder import GanModel, GanSpec
from brainldm.weights.model_folder import Model, ModelSpec

# sample(seed, indices [N], conditions [N, K]) -> volumes [N, D, H, W]
Sampler = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """The key of each sample, folded from (seed, index) alone, [N] typed keys; 0 <= seed < 2^63.

    All 64 bits of the seed count, where `jax.random.key` without x64 keeps the lower 32.
    """
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    root = jax.random.wrap_key_data(words, impl="threefry2x32")
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def check_sampling(spec: ModelSpec, sampling: Sampling) -> None:
    """Raise UserError for more steps than the model's schedule has, or a spacing that it cannot have."""
    make_chain(make_schedule(**spec.schedule), sampling.num_steps, sampling.spacing)


def make_sampler(model: Model | GanModel, sampling: Sampling, *, batch_size: int, finish: bool = True) -> Sampler:
    """A function that draws volumes, float32 [N, D, H, W] in [0, 1], for any N up to `batch_size`, compiled here.

    Every call runs the same program on `batch_size` samples, the missing ones being padding: a volume then
    depends on its seed, index and conditions alone, bit for bit, not on what else was asked for. The batch is split
    over as many devices of this process as divide it. A baseline draws in one pass, without `sampling`. Without
    `finish` the volumes are as decoded, for `finished`. Raises UserError for more steps than the model's schedule has.
    """
    devices = jax.local_devices()
    shards = math.gcd(batch_size, len(devices))
    mesh = make_mesh({"data": shards}, devices[:shards])
    constrain = batch_constraint(mesh) if shards > 1 else lambda x: x
    if isinstance(model, GanModel):
        program, params = _one_pass(model, shards, constrain)
    else:
        program, params = _denoising(model, sampling, shards, constrain)
    params = jax.device_put(params, replicated(mesh))

    def arguments(seed: int, indices: np.ndarray, conditions: np.ndarray) -> tuple:
        padding = [(0, batch_size - len(indices))]
        indices = np.pad(np.asarray(indices, np.int32), padding, mode="edge")
        conditions = np.pad(np.asarray(conditions, np.float32), [*padding, (0, 0)], mode="edge")
        return params, sample_keys(seed, jnp.asarray(indices)), jnp.asarray(conditions)

    clear = finish and model.spec.zero_background
    began = time.monotonic()
    compiled = jax.jit(program).lower(*arguments(0, np.zeros(1), np.zeros((1, model.spec.covariates.width)))).compile()
    if (seconds := time.monotonic() - began) > 1:
        log(f"compiled the sampler in {format_duration(seconds)}")

    def sample(seed: int, indices: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        volumes = np.asarray(compiled(*arguments(seed, indices, conditions)))[: len(indices)]
        return np.stack([finished(model.spec, volume) for volume in volumes]) if clear else volumes

    return sample


def finished(spec: ModelSpec | GanSpec, volume: np.ndarray) -> np.ndarray:
    """A decoded volume [D, H, W] as it is given away: exactly 0 around the brain where the model's scans are so."""
    return clear_background(volume) if spec.zero_background else volume


# What is compiled: program(params, keys [N], conditions [N, K]) -> volumes [N, D, H, W]; and its parameters.
_Program = tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]


def _denoising(model: Model, sampling: Sampling, shards: int, constrain: Callable) -> _Program:
    spec = model.spec
    check_sampling(spec, sampling)
    schedule = make_schedule(**spec.schedule)
    unet, autoencoder = spec.make_unet(shards), spec.make_autoencoder(shards)

    def program(params: Any, keys: jax.Array, c: jax.Array) -> jax.Array:
        unet_params, autoencoder_params = params
        latents = sample_latents(
            unet,
            unet_params,
            schedule,
            sampling,
            c,
            keys,
            spec.latent_shape,
            prediction=spec.prediction,
            constrain=constrain,
        )
        return decode_latents(
            autoencoder, autoencoder_params, latents, spec.latent_scale, at_once=shards, constrain=constrain
        )

    return program, (model.unet, model.autoencoder)


def _one_pass(model: GanModel, shards: int, constrain: Callable) -> _Program:
    generator = model.spec.make_generator(shards)

    def program(params: Any, keys: jax.Array, c: jax.Array) -> jax.Array:
        z = jax.vmap(lambda key: jax.random.normal(key, (generator.latent_size,)))(keys)
        return constrain(generator.apply({"params": params}, constrain(z)))[..., 0]

    return program, model.generator


def reconstruct(model: Model | GanModel, volumes: np.ndarray) -> np.ndarray | None:
    """What a model makes of volumes [N, D, H, W] in [0, 1], by the mean of its encoder, float32 [N, D, H, W].

    None for a model without an encoder.
    """
    if isinstance(model, GanModel):
        networks, params = (model.spec.make_encoder(), model.spec.make_generator()), (model.encoder, model.generator)
        if networks[0] is None:
            return None

        def again(params: Any, image: jax.Array) -> jax.Array:
            mean, _ = jnp.split(networks[0].apply({"params": params[0]}, image)[-1], 2, axis=-1)
            return networks[1].apply({"params": params[1]}, mean)
    else:
        autoencoder, params = model.spec.make_autoencoder(), model.autoencoder

        def again(params: Any, image: jax.Array) -> jax.Array:
            return autoencoder.apply({"params": params}, image)[0]

    @jax.jit
    def one(params, image):
        return jnp.clip(again(params, image[None, ..., None])[0, ..., 0], 0.0, 1.0)

    params = jax.device_put(params)
    return np.stack([np.asarray(one(params, jnp.asarray(volume, jnp.float32))) for volume in volumes])


def sweep(
    sampler: Sampler,
    covariates: Covariates,
    name: str,
    values: Sequence[float],
    others: Mapping[str, float | str],
    seed: int,
    index: int,
) -> np.ndarray:
    """Volumes [len(values), D, H, W] in which condition `name` takes `values`; noise and all else are the same."""
    conditions = covariates.encode([{**others, name: value} for value in values])
    return np.concatenate([sampler(seed, np.array([index]), row[None]) for row in conditions])
