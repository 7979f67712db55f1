"""An autoencoder that changes resolution by moving voxels into channels: quick where volumes are large.

At full resolution a convolution has few channels and many voxels, which leaves vector and matrix units idle. Here the
first convolution already sees 2 x 2 x 2 voxels side by side in the channels, and nothing is computed at full
resolution. Changes of resolution have the shortcuts without parameters of deep-compression autoencoders (Chen et al.
2024, arXiv 2410.10733): means of channels on the way down, copies on the way up.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.autoencoder import AutoencoderKL, Coder, ResidualBlock
from brainldm.models.layers import Conv, GroupNorm
from brainldm.models.remat import remat_at

_zeros = nn.initializers.zeros_init()


def space_to_depth(x: jax.Array) -> jax.Array:
    """`[B, 2 d, 2 h, 2 w, C]` to `[B, d, h, w, 8 C]`; the channels of a voxel stay together."""
    batch, depth, height, width, channels = x.shape
    x = x.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, depth // 2, height // 2, width // 2, 8 * channels)


def depth_to_space(x: jax.Array) -> jax.Array:
    """The reverse of `space_to_depth`."""
    batch, depth, height, width, channels = x.shape
    x = x.reshape(batch, depth, height, width, 2, 2, 2, channels // 8)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, 2 * depth, 2 * height, 2 * width, channels // 8)


def fold_channels(x: jax.Array, features: int) -> jax.Array | None:
    """`[..., 8 C]` from `space_to_depth` to `[..., features]`: each the mean of one channel over 2, 4 or 8 voxels.

    None where `features` is not C times a divisor of 8.
    """
    channels = x.shape[-1] // 8
    if features % channels or 8 % (features // channels):
        return None
    parts = features // channels
    return x.reshape(*x.shape[:-1], parts, 8 // parts, channels).mean(-2).reshape(*x.shape[:-1], features)


def unfold_channels(x: jax.Array, features: int) -> jax.Array | None:
    """`[..., C]` to `[..., 8 features]`, the reverse of `fold_channels` by copies. None where that is not defined."""
    channels = x.shape[-1]
    if channels % features or 8 % (channels // features):
        return None
    parts = channels // features
    x = jnp.repeat(x.reshape(*x.shape[:-1], parts, 1, features), 8 // parts, axis=-2)
    return x.reshape(*x.shape[:-3], 8 * features)


class _Level(nn.Module):
    """The residual blocks of a level. Their last convolutions start at zero, so each block starts as the identity."""

    count: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        arguments = (x.shape[-1], self.norm_num_groups, self.norm_eps, self.dtype, self.conv_route, _zeros)
        for index in range(self.count):
            x = block(*arguments, name=f"blocks_{index}")(x)
        return x


class Encoder(Coder):
    """`[B, D, H, W, in]` to `[B, D/f, H/f, W/f, out]`, f = 2 to the number of levels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = {"conv_route": self.conv_route}
        counts = _counts(self.num_res_blocks, self.channels)
        for level, (width, count) in enumerate(zip(self.channels, counts, strict=True)):
            x = space_to_depth(x)
            # The first sees a few voxels and has to look around; the others see features, which the blocks have spread.
            size, dtype = (3, jnp.float32) if level == 0 else (1, self.dtype)
            shortcut = None if level == 0 else fold_channels(x, width)
            x = Conv(width, kernel_size=size, dtype=dtype, **conv, name=f"down_{level}")(x).astype(self.dtype)
            x = x if shortcut is None else x + shortcut
            x = _Level(count, *self.block, remat_at(level, self.remat), name=f"level_{level}")(x)
        x = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, name="norm_out")(x)
        return Conv(self.out_channels, **conv, name="conv_out")(x)


class Decoder(Coder):
    """The encoder's mirror image. No activation after the last convolution."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        conv = {"conv_route": self.conv_route}
        counts = _counts(self.num_res_blocks, self.channels)
        x = Conv(self.channels[-1], **conv, name="conv_in")(z).astype(self.dtype)
        for level in reversed(range(len(self.channels))):
            x = _Level(counts[level], *self.block, remat_at(level, self.remat), name=f"level_{level}")(x)
            if level:
                width = self.channels[level - 1]
                shortcut = unfold_channels(x, width)
                x = Conv(8 * width, kernel_size=1, dtype=self.dtype, **conv, name=f"up_{level}")(x)
                x = depth_to_space(x if shortcut is None else x + shortcut)
        x = nn.silu(GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="norm_out")(x))
        # float32: bfloat16 has 8 bits, which would show as steps in the intensities of the image.
        return depth_to_space(Conv(8 * self.out_channels, **conv, name="up_0")(x))


def _counts(num_res_blocks: int | Sequence[int], channels: Sequence[int]) -> tuple[int, ...]:
    return (num_res_blocks,) * len(channels) if isinstance(num_res_blocks, int) else tuple(num_res_blocks)


class SpaceToDepthAutoencoder(AutoencoderKL):
    """`AutoencoderKL` with other networks inside: every level, the first too, halves the sides.

    Attributes: those of `AutoencoderKL`, but `num_res_blocks` may have one value for each level. A change of resolution
    has its shortcut where one width divides by the other and leaves 1, 2, 4 or 8.
    """

    channels: Sequence[int] = (32, 128, 256)
    num_res_blocks: int | Sequence[int] = (1, 2, 2)

    @property
    def halvings(self) -> int:
        return len(self.channels)

    def _coders(self) -> tuple[type[Coder], type[Coder]]:
        return Encoder, Decoder
