"""SynthSeg's U-Net (Billot et al. 2023, Medical Image Analysis 86:102789): a brain segmenter for any contrast.

Two layouts of its weights are read: the Keras layers of the authors' files (`unet_conv_downarm_0_0`, ...; 1.0 has 32
labels, 2.0 has 33) and the PyTorch modules of the copy of 2.0 that DIPY distributes (`block_list.0.layer_list.0...`).
Batch normalisation is in its inference form, one scale and shift per channel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from brainldm.models.layers import Conv, upsample_nearest
from brainldm.runtime.errors import UserError

BATCH_NORM_EPS = 1e-3
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_TORCH_NORM = dict(zip(("weight", "bias", "running_mean", "running_var"), _NORM, strict=True))
_TORCH_NAME = re.compile(r"block_list\.(\d+)\.layer_list\.(\d+)\.(?:conv\.)?(\w+)")
_TORCH_HEAD = {"conv_pred.weight": "unet_likelihood/kernel", "conv_pred.bias": "unet_likelihood/bias"}


class SynthSegUNet(nn.Module):
    """Scores of each label at each voxel: [B, D, H, W, 1] -> [B, D, H, W, num_labels], before the softmax.

    Level l has features * 2^l channels. Sides must divide by 2^(levels - 1). The axes are those of RAS.
    """

    num_labels: int
    features: int = 24
    levels: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for level in range(self.levels):
            x = self._block(x, f"down_{level}", self.features * 2**level)
            skips.append(x)  # what is passed across is not normalised
            x = _Affine(name=f"norm_down_{level}")(x)
            if level < self.levels - 1:
                x = nn.max_pool(x, (2, 2, 2), (2, 2, 2))
        for level in reversed(range(self.levels - 1)):
            x = jnp.concatenate([skips[level], upsample_nearest(x)], axis=-1)
            x = self._block(x, f"up_{level}", self.features * 2**level)
            x = _Affine(name=f"norm_up_{level}")(x)
        return Conv(self.num_labels, kernel_size=1, name="likelihood")(x)

    def _block(self, x: jax.Array, name: str, features: int) -> jax.Array:
        for number in range(2):
            x = jax.nn.elu(Conv(features, name=f"{name}_{number}")(x))
        return x


class _Affine(nn.Module):
    """One scale and one shift per channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
        shift = self.param("shift", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
        return x * scale + shift


def load_synthseg(tensors: Mapping[str, np.ndarray]) -> tuple[SynthSegUNet, dict[str, Any]]:
    """The network and its variables from the tensors of a weights file.

    `tensors`: by `LAYER/WEIGHT` of Keras (`unet_conv_downarm_0_0/kernel`, [3, 3, 3, C_in, C_out]), or by PyTorch's
    names (`block_list.0.layer_list.0.conv.weight`, [C_out, C_in, 3, 3, 3]). Depth, features and labels are those of the
    file. Raises UserError listing what is missing or has the wrong shape.
    """
    if any(name.startswith("block_list.") for name in tensors):
        tensors = _from_torch(tensors)
    first, head = tensors.get("unet_conv_downarm_0_0/kernel"), tensors.get("unet_likelihood/kernel")
    if first is None or head is None:
        raise UserError(
            "These are no weights of SynthSeg's segmentation network: unet_conv_downarm_0_0 or unet_likelihood is not "
            "among them. Give synthseg_1.0.h5, synthseg_2.0.h5 or DIPY's synthseg_model_weights.pth; those of the "
            "robust, parcellation and quality-control networks are not read."
        )
    levels = len({name for name in tensors if re.fullmatch(r"unet_conv_downarm_\d+_0/kernel", name)})
    network = SynthSegUNet(head.shape[-1], first.shape[-1], levels)
    shapes = expected_shapes(network.num_labels, network.features, levels)
    wrong = [
        f"{name} is {'missing' if name not in tensors else f'{tensors[name].shape} instead of {shape}'}"
        for name, shape in shapes.items()
        if name not in tensors or tensors[name].shape != shape
    ]
    if wrong:
        raise UserError(f"The weights do not fit SynthSeg's network: {'; '.join(wrong[:8])} ({len(wrong)} in all).")

    def convolution(layer: str) -> dict[str, np.ndarray]:
        return {part: np.asarray(tensors[f"{layer}/{part}"], np.float32) for part in ("kernel", "bias")}

    def affine(layer: str) -> dict[str, np.ndarray]:
        gamma, beta, mean, variance = (np.asarray(tensors[f"{layer}/{part}"], np.float64) for part in _NORM)
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPS)
        return {"scale": scale.astype(np.float32), "shift": (beta - mean * scale).astype(np.float32)}

    params: dict[str, Any] = {"likelihood": convolution("unet_likelihood")}
    for level in range(levels):
        for number in range(2):
            params[f"down_{level}_{number}"] = convolution(f"unet_conv_downarm_{level}_{number}")
        params[f"norm_down_{level}"] = affine(f"unet_bn_down_{level}")
    for step in range(levels - 1):
        level = levels - 2 - step  # Keras numbers the way up from the bottom on
        for number in range(2):
            params[f"up_{level}_{number}"] = convolution(f"unet_conv_uparm_{levels + step}_{number}")
        params[f"norm_up_{level}"] = affine(f"unet_bn_up_{step}")
    return network, {"params": params}


def expected_shapes(num_labels: int, features: int = 24, levels: int = 5) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor read from a file, by `LAYER/WEIGHT` of Keras."""
    shapes: dict[str, tuple[int, ...]] = {}

    def block(convolution: str, norm: str, c_in: int, c_out: int) -> None:
        for number in range(2):
            shapes[f"{convolution}_{number}/kernel"] = (3, 3, 3, c_in if number == 0 else c_out, c_out)
            shapes[f"{convolution}_{number}/bias"] = (c_out,)
        shapes.update({f"{norm}/{part}": (c_out,) for part in _NORM})

    for level in range(levels):
        c_in = features * 2 ** (level - 1) if level else 1
        block(f"unet_conv_downarm_{level}", f"unet_bn_down_{level}", c_in, features * 2**level)
    for step in range(levels - 1):
        c_out = features * 2 ** (levels - 2 - step)
        block(f"unet_conv_uparm_{levels + step}", f"unet_bn_up_{step}", 3 * c_out, c_out)
    shapes["unet_likelihood/kernel"] = (1, 1, 1, features, num_labels)
    shapes["unet_likelihood/bias"] = (num_labels,)
    return shapes


def _from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by Keras's names and layout. Blocks count the way down and then up; a block holds, from 0 on (way up:
    1, after the upsampling), two convolutions and a batch norm."""
    blocks = 1 + max((int(found[1]) for name in tensors if (found := _TORCH_NAME.match(name))), default=0)
    levels = (blocks + 1) // 2
    named: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if name in _TORCH_HEAD:
            named[_TORCH_HEAD[name]] = _kernel(value)
        elif found := _TORCH_NAME.fullmatch(name):
            block, number, part = int(found[1]), int(found[2]), found[3]
            up = block >= levels
            number -= up
            if number < 2:
                layer = f"unet_conv_{'up' if up else 'down'}arm_{block}_{number}"
                named[f"{layer}/{'kernel' if part == 'weight' else part}"] = _kernel(value)
            elif part in _TORCH_NORM:
                layer = f"unet_bn_up_{block - levels}" if up else f"unet_bn_down_{block}"
                named[f"{layer}/{_TORCH_NORM[part]}"] = value
    return named


def _kernel(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else value
