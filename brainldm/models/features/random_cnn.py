"""A frozen 3D convolutional network with seeded random weights, as a space of features where no trained one is at hand.

Random convolutions separate textures and shapes well enough to tell sets of images apart (Saxe et al. 2011), and the
same seed gives the same features everywhere. Distances in this space have no published value to be compared with.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.models.layers import conv3d

WIDTHS = (8, 16, 32, 64)
FEATURES = sum(WIDTHS)

Params = list[jax.Array]


def random_kernels(seed: int = 0) -> Params:
    """Kernels [3, 3, 3, C_in, C_out] of the stages, drawn as He et al. (2015) initialise."""
    rng = np.random.default_rng(seed)
    kernels, channels = [], 1
    for width in WIDTHS:
        scale = np.sqrt(2 / (27 * channels))
        kernels.append(jnp.asarray(scale * rng.standard_normal((3, 3, 3, channels, width), np.float32)))
        channels = width
    return kernels


def random_features(kernels: Params, x: jax.Array) -> jax.Array:
    """One vector a volume: [B, D, H, W, 1] -> [B, FEATURES] float32.

    Four stages of a convolution with stride 2 and a rectifier; each gives the mean of its channels over positions.
    Volumes are z-scored one by one first, as for the Med3D networks.
    """
    axes = tuple(range(1, x.ndim))
    x = x.astype(jnp.float32)
    x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-12)
    found = []
    for kernel in kernels:
        x = jax.nn.relu(conv3d(x, kernel, (2, 2, 2), ((1, 1),) * 3))
        found.append(x.mean((1, 2, 3)))
    return jnp.concatenate(found, axis=-1)
