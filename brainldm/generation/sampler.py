"""From conditions to volumes with a released model, as one compiled program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import decode_latents, sample_latents
from brainldm.diffusion.schedule import make_schedule
from brainldm.parallel.mesh import batch_constraint, make_mesh, replicated
from brainldm.weights.model_folder import Model

# sample(seed, indices [N], conditions [N, K]) -> volumes [N, D, H, W]
Sampler = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """The key of each sample, folded from (seed, index) alone, [N] typed keys."""
    root = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def make_sampler(model: Model, *, batch_size: int, num_steps: int, eta: float = 0.0, guidance: float = 1.0) -> Sampler:
    """A function that draws volumes, float32 [N, D, H, W] in [0, 1], for any N up to `batch_size`.

    Every call runs the same program on `batch_size` samples, the missing ones being padding: a volume then
    depends on its seed, index and conditions alone, bit for bit, not on what else was asked for. The batch is split
    over as many devices of this process as divide it.
    """
    spec = model.spec
    unet, autoencoder = spec.make_unet(), spec.make_autoencoder()
    schedule = make_schedule(**spec.schedule)
    plain = guidance == 1.0
    devices = jax.local_devices()
    parts = math.gcd(batch_size, len(devices))
    mesh = make_mesh({"data": parts}, devices[:parts])
    place = batch_constraint(mesh) if parts > 1 else lambda x: x

    @jax.jit
    def draw(unet_params, autoencoder_params, keys, condition, eta, guidance):
        latents = sample_latents(
            unet,
            unet_params,
            schedule,
            condition,
            keys,
            spec.latent_shape,
            prediction=spec.prediction,
            num_steps=num_steps,
            eta=eta,
            guidance=None if plain else guidance,
            place=place,
        )
        return decode_latents(autoencoder, autoencoder_params, latents, spec.latent_scale, at_once=parts, place=place)

    params = jax.device_put((model.unet, model.autoencoder), replicated(mesh))

    def sample(seed: int, indices: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        count = len(indices)
        padding = [(0, batch_size - count)]
        indices = np.pad(np.asarray(indices, np.int32), padding, mode="edge")
        conditions = np.pad(np.asarray(conditions, np.float32), [*padding, (0, 0)], mode="edge")
        volumes = draw(
            *params,
            sample_keys(seed, jnp.asarray(indices)),
            jnp.asarray(conditions),
            jnp.float32(eta),
            jnp.float32(guidance),
        )
        return np.asarray(volumes)[:count]

    return sample


def reconstruct(model: Model, volumes: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of volumes [N, D, H, W] in [0, 1], by the posterior mean, float32 [N, D, H, W]."""
    autoencoder = model.spec.make_autoencoder()

    @jax.jit
    def one(params, image):
        return jnp.clip(autoencoder.apply({"params": params}, image[None, ..., None])[0][0, ..., 0], 0.0, 1.0)

    params = jax.device_put(model.autoencoder)
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
    codes = covariates.encode([{**others, name: value} for value in values])
    return np.concatenate([sampler(seed, np.array([index]), code[None]) for code in codes])
