"""MeshNet (Fedorov et al. 2017, arXiv 1612.00940): a segmenter of dilated 3 x 3 x 3 convolutions at full resolution.

No pooling and few features, so its weights are small (0.4 to 0.8 MB). The number of layers, their features, dilations
and activation are those of the file that is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from brainldm.models.layers import conv3d, torch_uniform
from brainldm.runtime.errors import UserError

ACTIVATIONS = {"elu": jax.nn.elu, "relu": jax.nn.relu, "linear": lambda x: x}

_MANY_VOXELS = 6_000_000


class MeshNetLayer(NamedTuple):
    """One convolution: output channels, odd kernel size, dilation, and the activation after it (see ACTIVATIONS)."""

    features: int
    kernel_size: int = 3
    dilation: int = 1
    activation: str = "linear"


class MeshNet(nn.Module):
    """Scores of each class at each voxel: [B, D, H, W, 1] -> [B, D, H, W, features of the last layer].

    Parameters `conv_0`, `conv_1`, ... with `kernel` [k, k, k, C_in, features] and `bias` [features]. Every convolution
    keeps the size with zeros around; a voxel sees as far as the dilations add up to (46 voxels for the usual nine).
    """

    layers: tuple[MeshNetLayer, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, layer in enumerate(self.layers):
            x = ACTIVATIONS[layer.activation](DilatedConv(layer, name=f"conv_{number}")(x))
        return x


class DilatedConv(nn.Module):
    """The convolution of a layer, without its activation."""

    layer: MeshNetLayer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = self.layer.kernel_size
        kernel = self.param("kernel", torch_uniform, (side, side, side, x.shape[-1], self.layer.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.layer.features,), jnp.float32)
        return dilated_conv3d(x, kernel, self.layer.dilation) + bias


def dilated_conv3d(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Three-dimensional convolution that keeps the size, zeros around, its taps `dilation` voxels apart.

    [B, D, H, W, C_in] and an odd [k, k, k, C_in, C_out] -> [B, D, H, W, C_out]. On a CPU the voxels of each remainder
    modulo `dilation` become an image of their own, which a dense convolution takes: the same sums, several times faster
    than XLA's dilated one.
    """

    def dense(x, kernel):
        batch, *sides, channels = x.shape
        x = jnp.pad(x, ((0, 0), *((0, -side % dilation) for side in sides), (0, 0)))
        d, h, w = (side // dilation for side in x.shape[1:4])
        x = x.reshape(batch, d, dilation, h, dilation, w, dilation, channels).transpose(2, 4, 6, 0, 1, 3, 5, 7)
        y = _conv_of_planes(x.reshape(-1, d, h, w, channels), kernel)
        y = y.reshape(dilation, dilation, dilation, batch, d, h, w, -1).transpose(3, 4, 0, 5, 1, 6, 2, 7)
        y = y.reshape(batch, d * dilation, h * dilation, w * dilation, -1)
        return y[:, : sides[0], : sides[1], : sides[2]]

    def dilated(x, kernel):
        reach = kernel.shape[0] // 2 * dilation
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1, 1), ((reach, reach),) * 3, rhs_dilation=(dilation,) * 3, dimension_numbers=numbers
        )

    if kernel.shape[0] == 1:
        return jnp.dot(x, kernel[0, 0, 0])
    return lax.platform_dependent(x, kernel, cpu=dense, default=dilated)


def _conv_of_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The dense convolution as one of planes, with the outputs of all taps along the first axis side by side, which are
    then shifted and added: with as few channels as here, 1.6 times as fast as a convolution for each tap, and three
    times its memory, which a whole head at 1 mm does not get."""
    batch, depth, height, width, channels = x.shape
    taps, features = kernel.shape[0], kernel.shape[-1]
    if batch * depth * height * width > _MANY_VOXELS:
        return conv3d(x, kernel, (1, 1, 1), ((taps // 2, taps // 2),) * 3)
    side_by_side = kernel.transpose(1, 2, 3, 0, 4).reshape(*kernel.shape[1:4], taps * features)
    padding = ((taps // 2, taps // 2),) * 2
    planes = x.reshape(batch * depth, height, width, channels)
    y = lax.conv_general_dilated(planes, side_by_side, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = y.reshape(batch, depth, height, width, taps, features)
    y = jnp.pad(y, ((0, 0), (taps // 2, taps // 2), *(((0, 0),) * 4)))
    return sum(y[:, tap : tap + depth, :, :, tap] for tap in range(taps))


def build_meshnet(
    layers: Sequence[MeshNetLayer], kernels: Sequence[np.ndarray], biases: Sequence[np.ndarray]
) -> tuple[MeshNet, dict[str, Any]]:
    """A MeshNet and its variables from the kernels [k, k, k, C_in, C_out] and biases [C_out] of its layers.

    Raises UserError for layers that do not follow from one another, an even kernel or an unknown activation.
    """
    channels = 1
    for number, (layer, kernel, bias) in enumerate(zip(layers, kernels, biases, strict=True)):
        side = layer.kernel_size
        expected = (side, side, side, channels, layer.features)
        if side % 2 == 0 or kernel.shape != expected or bias.shape != (layer.features,):
            raise UserError(
                f"This is no MeshNet: convolution {number + 1} has a kernel of shape {kernel.shape} and a bias of "
                f"shape {bias.shape}, where {expected} with odd sides and {(layer.features,)} are wanted."
            )
        if layer.activation not in ACTIVATIONS:
            raise UserError(
                f"This is no MeshNet that can be read: convolution {number + 1} is followed by {layer.activation!r}; "
                f"known are {', '.join(ACTIVATIONS)}."
            )
        channels = layer.features
    params = {
        f"conv_{number}": {"kernel": np.asarray(kernel, np.float32), "bias": np.asarray(bias, np.float32)}
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True))
    }
    return MeshNet(tuple(layers)), {"params": params}
