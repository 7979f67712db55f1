"""LPIPS, a perceptual distance between images (Zhang et al. 2018), with SqueezeNet 1.1 features.

The part of the autoencoder's loss that compares slices. The weights come from files that the user names: the ImageNet
weights of SqueezeNet 1.1 (Iandola et al. 2016; names as in torchvision's state dict) and the linear heads of LPIPS
v0.1. Pure functions on a tree of float32 arrays; convolutions run in the type of the images given.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from brainldm.runtime.errors import UserError

# The input scaling of LPIPS: ImageNet's mean and standard deviation, moved from [0, 1] to [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

# Positions in SqueezeNet 1.1: 0 is a convolution, these are fire modules, a pooling comes before 3, 6 and 9.
FIRE_MODULES = (3, 4, 6, 7, 9, 10, 11, 12)
POOL_BEFORE = (3, 6, 9)
# Where LPIPS reads features: after the first ReLU and after these modules.
READ_AFTER = (4, 7, 9, 10, 11, 12)
FIRE_PARTS = ("squeeze", "expand1x1", "expand3x3")

# The smallest side that leaves a voxel after the three poolings.
MIN_SIDE = 17

Params = dict[str, Any]


def load_lpips_squeeze(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from PyTorch tensors, as a tree of float32 arrays.

    tensors: by name, `features.0.weight` [64, 3, 3, 3], `features.3.squeeze.weight`, ... of torchvision's
    squeezenet1_1, and `lin0.model.1.weight` [1, 64, 1, 1] ... `lin6.model.1.weight` of LPIPS. Other names (the
    classifier) are left alone. Raises UserError listing what is missing or has the wrong shape.
    """
    shapes = expected_shapes()
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise UserError(
            f"The LPIPS weights are incomplete: {len(missing)} of {len(shapes)} tensors are missing, namely "
            f"{', '.join(missing)}. They are expected under the names of torchvision's squeezenet1_1 state "
            "dict (features.*) and of the LPIPS v0.1 squeeze heads (lin*.model.1.weight); give both files."
        )
    wrong = [
        f"{name} {tuple(np.shape(tensors[name]))} instead of {shape}"
        for name, shape in shapes.items()
        if tuple(np.shape(tensors[name])) != shape
    ]
    if wrong:
        raise UserError(f"The LPIPS weights do not fit SqueezeNet 1.1: {'; '.join(wrong)}.")

    def convolution(name: str) -> Params:
        kernel = np.asarray(tensors[f"{name}.weight"], np.float32).transpose(2, 3, 1, 0)
        return {"kernel": kernel, "bias": np.asarray(tensors[f"{name}.bias"], np.float32)}

    return {
        "stem": convolution("features.0"),
        "fire": {str(i): {part: convolution(f"features.{i}.{part}") for part in FIRE_PARTS} for i in FIRE_MODULES},
        "heads": [
            np.asarray(tensors[f"lin{i}.model.1.weight"], np.float32).reshape(-1) for i in range(1 + len(READ_AFTER))
        ],
    }


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that `load_lpips_squeeze` reads."""
    shapes: dict[str, tuple[int, ...]] = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    widths = {3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128), 9: (48, 192), 10: (48, 192)}
    widths |= {11: (64, 256), 12: (64, 256)}
    channels, head_channels = 64, [64]
    for i, (squeezed, expanded) in widths.items():
        for part, size, c_in, c_out in (
            ("squeeze", 1, channels, squeezed),
            ("expand1x1", 1, squeezed, expanded),
            ("expand3x3", 3, squeezed, expanded),
        ):
            shapes[f"features.{i}.{part}.weight"] = (c_out, c_in, size, size)
            shapes[f"features.{i}.{part}.bias"] = (c_out,)
        channels = 2 * expanded
        if i in READ_AFTER:
            head_channels.append(channels)
    for i, c in enumerate(head_channels):
        shapes[f"lin{i}.model.1.weight"] = (1, c, 1, 1)
    return shapes


def _convolve(x: jax.Array, params: Params, stride: int = 1, padding: int = 0) -> jax.Array:
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(params["kernel"], x.dtype),
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(y + jnp.asarray(params["bias"], x.dtype))


def _max_pool(x: jax.Array) -> jax.Array:
    """3 x 3, stride 2; a window that begins inside the image counts even if it ends outside ("ceil mode")."""
    padding = [(0, 2 * (-(-(n - 3) // 2)) + 3 - n) for n in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), (2, 2), padding)


def _features(params: Params, x: jax.Array) -> list[jax.Array]:
    """The seven feature maps of [N, H, W, 3] images."""
    x = _convolve(x, params["stem"], stride=2)
    maps = [x]
    for i in FIRE_MODULES:
        fire = params["fire"][str(i)]
        if i in POOL_BEFORE:
            x = _max_pool(x)
        squeezed = _convolve(x, fire["squeeze"])
        x = jnp.concatenate(
            [_convolve(squeezed, fire["expand1x1"]), _convolve(squeezed, fire["expand3x3"], padding=1)],
            axis=-1,
        )
        if i in READ_AFTER:
            maps.append(x)
    return maps


def unit_channels(x: jax.Array, eps: float = 1e-10) -> jax.Array:
    """Features divided by (their length over the channels + eps), float32; an all-zero vector stays zero.

    The length is guarded so that the gradient at an all-zero vector is finite (a plain square root gives NaN).
    """
    x = x.astype(jnp.float32)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    positive = square > 0
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
    return x / (length + eps)


def lpips_distance(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """The distance of each pair of images: [N, H, W, 1] and [N, H, W, 1] -> [N] float32.

    The one channel is used three times. LPIPS was made for intensities in [-1, 1]; the released brain autoencoder was
    trained with volumes in [0, 1] given as they are, which this function leaves to the caller: nothing is rescaled
    here but for LPIPS's own shift and scale. Raises UserError for images other than [N, H, W, 1], H and W >= 17.
    """
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 1 or min(x.shape[1:3]) < MIN_SIDE:
        raise UserError(
            f"LPIPS compares two arrays of one-channel images [N, H, W, 1] with sides of at least {MIN_SIDE} "
            f"pixels; the arrays given are {x.shape} and {y.shape}."
        )

    def prepared(images: jax.Array) -> jax.Array:
        return (images - jnp.array(SHIFT, images.dtype)) / jnp.array(SCALE, images.dtype)

    # One pass over both: half the launches, and the weights are read once.
    both = _features(params, prepared(jnp.concatenate([x, y])))
    distance = jnp.zeros(x.shape[0], jnp.float32)
    for features, head in zip(both, params["heads"], strict=True):
        first, second = jnp.split(unit_channels(features), 2)
        # The head weighs the channels (a 1 x 1 convolution to one channel); then the mean over the image.
        distance += jnp.mean(jnp.square(first - second), axis=(1, 2)) @ jnp.asarray(head, jnp.float32)
    return distance


def lpips_2p5d(params: Params, x: jax.Array, y: jax.Array, key: jax.Array, ratio: float = 0.5) -> jax.Array:
    """LPIPS of volumes by slices ("2.5D", as MONAI's PerceptualLoss): [B, D, H, W, 1] twice -> scalar float32.

    For each of the three axes, int(n * ratio) of each volume's n slices (at least one) are drawn without replacement,
    the same in x and y; their distances are averaged over slices and batch, and the three means added. Each volume
    draws its own slices, so a batch sharded over devices is not gathered. `ratio` is static. Raises UserError for
    a ratio outside ]0, 1], and for volumes with a side below 17.
    """
    if not 0.0 < ratio <= 1.0:
        raise UserError(f"The share of slices that LPIPS looks at must lie in (0, 1], not {ratio}.")
    if x.shape != y.shape or x.ndim != 5:
        raise UserError(f"LPIPS needs two arrays of volumes [B, D, H, W, 1], not {x.shape} and {y.shape}.")
    batch = x.shape[0]
    total = jnp.zeros((), jnp.float32)
    for axis in range(3):
        size = x.shape[1 + axis]
        count = max(1, int(size * ratio))
        keys = jax.random.split(jax.random.fold_in(key, axis), batch)
        chosen = jax.vmap(lambda k, n=size, c=count: jax.random.permutation(k, n)[:c])(keys)

        def slices(volumes: jax.Array, axis=axis, chosen=chosen) -> jax.Array:
            picked = jax.vmap(lambda volume, index: jnp.take(jnp.moveaxis(volume, axis, 0), index, axis=0))(
                volumes, chosen
            )
            return picked.reshape(-1, *picked.shape[2:])

        total += jnp.mean(lpips_distance(params, slices(x), slices(y)))
    return total
