"""Random weights and images for the perceptual networks, the same for the tests and for the PyTorch
reference.

Only numpy: tests/golden/make_perceptual.py reads this file in an environment without JAX. Each tensor is
drawn from its own name, so the order does not matter.
"""

import zlib

import numpy as np

# Entering, squeezed and expanded channels of the fire modules of SqueezeNet 1.1, by position.
FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
HEADS = (64, 128, 256, 384, 384, 512, 512)


def draw(name, shape):
    """Convolutions uniform with variance 1 / fan_in, norms' scales and variances in [0.5, 1.5], the rest
    small."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32)
    if name.startswith("lin"):
        return values
    if len(shape) >= 4:
        return (2.0 * values - 1.0) * np.float32((3.0 / np.prod(shape[1:])) ** 0.5)
    if name.endswith(("bias", "running_mean")):
        return np.float32(0.4) * values - np.float32(0.2)
    return np.float32(0.5) + values


def squeeze_weights():
    """SqueezeNet 1.1 and LPIPS heads under their PyTorch names."""
    shapes = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    for i, (c_in, squeezed, expanded) in FIRES.items():
        for part, c_from, c_to, size in (
            ("squeeze", c_in, squeezed, 1),
            ("expand1x1", squeezed, expanded, 1),
            ("expand3x3", squeezed, expanded, 3),
        ):
            shapes[f"features.{i}.{part}.weight"] = (c_to, c_from, size, size)
            shapes[f"features.{i}.{part}.bias"] = (c_to,)
    for i, channels in enumerate(HEADS):
        shapes[f"lin{i}.model.1.weight"] = (1, channels, 1, 1)
    return {name: draw(name, shape) for name, shape in shapes.items()}


def images(seed, shape):
    """Uniform in [0, 1), float32."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
