"""Layers shared by the networks: three-dimensional convolution, normalisation, resampling.

All arrays are channels-last, `[B, D, H, W, C]`. Every layer takes `dtype`, the type its result is computed
in; parameters and the statistics of the norms are float32 whatever `dtype` is.
"""

from collections.abc import Sequence
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from brainldm.models import convolution_cpu
from brainldm.models.upsampling import upsample_conv3d

Padding = Sequence[tuple[int, int]]

CONV_ROUTES = ("planes_on_cpu", "direct")
"""How a three-dimensional convolution is computed, see `conv3d`."""

# The distribution PyTorch gives the weights of convolutions and linear layers: U(-1, 1) / sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def _direct(x: jax.Array, kernel: jax.Array, strides: tuple, padding: tuple) -> jax.Array:
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def conv_route(num_devices: int) -> str:
    """The route for a program whose arrays are sharded over `num_devices`.

    The 2D convolutions merge batch and depth. Where these are sharded XLA cannot express that: it gathers, and with
    more than one sample on a device the kernel's gradient comes out twice too large (jaxlib 0.10.2).
    """
    return "planes_on_cpu" if num_devices == 1 else "direct"


def conv3d(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, route: str = "planes_on_cpu"
) -> jax.Array:
    """Three-dimensional convolution (cross-correlation, as in every deep learning library).

    With the route "planes_on_cpu", a CPU computes it as a sum of 2D convolutions, or in another way that was measured
    to be quicker (`convolution_cpu`), 2 to 8 times faster than by XLA's direct 3D convolution there; other platforms
    take the direct one. The choice of platform is made when the program is lowered, so one trace serves every platform.
    "direct" is the direct one everywhere, which sharded arrays need (see `conv_route`). A 1 x 1 x 1 kernel is a matrix
    product.

    Args:
        x: `[B, D, H, W, C_in]`.
        kernel: `[kD, kH, kW, C_in, C_out]`, of the type of `x`.
        strides: three steps.
        padding: three pairs (zeros before, zeros after).
        route: one of CONV_ROUTES.

    Returns:
        `[B, D', H', W', C_out]` with `D' = (D + before + after - kD) // stride + 1` and so on.
    """
    strides = tuple(strides)
    padding = tuple((int(before), int(after)) for before, after in padding)
    if kernel.shape[:3] == (1, 1, 1) and strides == (1, 1, 1) and padding == ((0, 0),) * 3:
        return jnp.dot(x, kernel[0, 0, 0])

    def on_cpu(x, kernel):
        return convolution_cpu.convolve(x, kernel, strides, padding)

    def direct(x, kernel):
        return _direct(x, kernel, strides, padding)

    depth = (x.shape[1] + sum(padding[0]) - kernel.shape[0]) // strides[0] + 1
    multiplications = x.shape[0] * depth * prod(x.shape[2:4]) // prod(strides[1:]) * kernel.size
    if multiplications < convolution_cpu.FEW or route == "direct":
        return direct(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct)


class Conv(nn.Module):
    """Convolution with parameters `kernel` `[k, k, k, C_in, features]` and `bias` `[features]`.

    The padding defaults to what keeps the size at stride 1. Initial values: the kernel as PyTorch
    draws it (`torch_uniform`), the bias zero, unless given. `conv_route`: see `conv3d`. With `upsample` the layer is
    `upsample_nearest` and the convolution, of size 3, in one.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding | None = None
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = torch_uniform
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: jnp.dtype = jnp.float32
    conv_route: str = "planes_on_cpu"
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = self.kernel_size
        shape = (side, side, side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = x.astype(self.dtype)
        if self.upsample:
            y = upsample_conv3d(x, kernel, self.conv_route)
        else:
            padding = ((side // 2, side // 2),) * 3 if self.padding is None else self.padding
            y = conv3d(x, kernel.astype(self.dtype), (self.stride,) * 3, padding, self.conv_route)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class GroupNorm(nn.GroupNorm):
    """Group norm with float32 statistics from centred values.

    The variance is the mean of squared differences: `E[x^2] - E[x]^2` loses all digits in float32 where
    the mean of a group is large beside its spread.
    """

    epsilon: float = 1e-6
    use_fast_variance: bool = False


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels, PyTorch's epsilon, float32 statistics from centred values."""

    epsilon: float = 1e-5
    use_fast_variance: bool = False


class Dense(nn.Dense):
    """Linear layer on the last axis; kernel drawn as PyTorch does, bias zero."""

    kernel_init: nn.initializers.Initializer = torch_uniform


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeat every voxel twice along each spatial axis.

    Written as repeats because `jax.image.resize` gathers an array that is sharded over space.
    """
    for axis in (1, 2, 3):
        x = jnp.repeat(x, 2, axis=axis)
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """Mean of each 2 x 2 x 2 block; a last odd voxel is left out, as PyTorch's AvgPool3d does."""
    batch, depth, height, width, channels = x.shape
    d, h, w = depth // 2, height // 2, width // 2
    x = x[:, : 2 * d, : 2 * h, : 2 * w]
    x = x.reshape(batch, d, 2, h, 2, w, 2, channels)
    return x.mean(axis=(2, 4, 6), dtype=jnp.float32).astype(x.dtype)


def timestep_embedding(t: jax.Array, dim: int, max_period: float = 10000.0) -> jax.Array:
    """Sinusoidal embedding of time steps (Vaswani et al. 2017), cosines first.

    Args:
        t: `[B]`, integers or floats.
        dim: length of the embedding; where it is odd the last value is zero.

    Returns:
        `[B, dim]` float32.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))
