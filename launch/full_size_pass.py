"""The paper's networks at full size with random weights: encode, DDIM steps, decode; prints time and memory.

.venv/bin/python launch/full_size_pass.py [DDIM STEPS, 2 when not given]
"""

import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.diffusion.sampling import Sampling, decode_latents, sample_latents
from brainldm.diffusion.schedule import make_schedule
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.unet import DiffusionUNet


def timed(what, function, *arguments):
    start = time.monotonic()
    result = jax.block_until_ready(function(*arguments))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.monotonic() - start:.1f} s, peak memory so far {peak:.1f} GiB", flush=True)
    return result


def main(steps: int) -> None:
    autoencoder, unet, schedule = AutoencoderKL(), DiffusionUNet(), make_schedule()
    key = jax.random.key(0)
    volume = jax.random.uniform(key, (1, 160, 224, 160, 1))
    latent, condition = jnp.zeros((1, 20, 28, 20, 3)), jnp.full((1, 4), 0.5)
    # Parameters do not depend on the size of the volume, so a small one makes them.
    ae_params = timed("autoencoder parameters", jax.jit(autoencoder.init), key, jnp.zeros((1, 8, 8, 8, 1)))["params"]
    unet_params = timed(
        "denoising parameters", jax.jit(unet.init), key, jnp.zeros((1, 4, 4, 4, 3)), jnp.zeros(1), condition
    )["params"]

    def sample(params, condition, keys):
        return sample_latents(
            unet, params, schedule, Sampling(steps), condition, keys, latent.shape[1:], prediction="epsilon"
        )

    encode = jax.jit(lambda params, x: autoencoder.apply({"params": params}, x, method="encode")[0])
    mean = timed("encode", encode, ae_params, volume)
    drawn = timed(f"{steps} DDIM steps", jax.jit(sample), unet_params, condition, jax.random.split(key, 1))
    image = timed("decode", jax.jit(lambda p, z: decode_latents(autoencoder, p, z, 1.0)), ae_params, drawn)
    assert mean.shape == drawn.shape == latent.shape and image.shape == volume.shape[:-1]
    assert np.isfinite(np.asarray(image)).all()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
