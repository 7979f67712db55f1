"""Networks of the adversarial baselines: from a vector to a volume, and the mirror image from a volume to numbers.

Ours: the paper compares with an LSGAN and a VAE-GAN and describes the networks of neither (docs/baselines.md).
"""

from collections.abc import Sequence
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.layers import Conv, Dense, GroupNorm
from brainldm.models.remat import remat_at


class _Up(nn.Module):
    """Each side doubled by repetition, convolution, group norm, ReLU."""

    features: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(self.features, upsample=True, dtype=self.dtype, conv_route=self.conv_route, name="conv")(x)
        return nn.relu(GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x))


class _Down(nn.Module):
    """Convolution of size 4 that halves each side, group norm unless `norm_num_groups` is 0, leaky ReLU."""

    features: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half = {"kernel_size": 4, "stride": 2, "padding": ((1, 1),) * 3}
        x = Conv(self.features, **half, dtype=self.dtype, conv_route=self.conv_route, name="conv")(x)
        if self.norm_num_groups:
            x = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x)
        return nn.leaky_relu(x, 0.2)


class VolumeGenerator(nn.Module):
    """A latent vector to a volume: a linear layer, stages that double the sides, a convolution to one channel, sigmoid.

    Group norm in place of the batch norm that is usual here: a batch of full size is a volume or two, and so a volume
    depends on its own vector alone.

    Attributes:
        shape: sides of the volume, each a multiple of 2 to the number of stages.
        channels: one width for each level, full resolution first; each level but the last halves the sides.
        dtype: type of the computation; parameters, norm statistics and the volume are float32.
        conv_route: how convolutions are computed, see `layers.conv3d`.
        remat: levels whose stage is recomputed in the backward pass, see `remat.remat_at`.
    """

    shape: Sequence[int] = (160, 224, 160)
    latent_size: int = 512
    channels: Sequence[int] = (16, 32, 64, 128, 256, 512)
    norm_num_groups: int = 16
    norm_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    conv_route: str = "planes_on_cpu"
    remat: bool | Sequence[int] = False

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """`[B, latent_size]` to `[B, *shape, 1]` in [0, 1], float32."""
        stages, width = len(self.channels) - 1, self.channels[-1]
        sides = tuple(side // 2**stages for side in self.shape)
        x = Dense(prod(sides) * width, dtype=self.dtype, name="linear")(z)
        x = x.reshape(-1, *sides, width)
        x = nn.relu(GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x))
        for level in reversed(range(stages)):
            stage = nn.remat(_Up) if remat_at(level, self.remat) else _Up
            arguments = (self.channels[level], self.norm_num_groups, self.norm_eps, self.dtype, self.conv_route)
            x = stage(*arguments, name=f"up_{level}")(x)
        # float32: bfloat16 has 8 bits, which would show as steps in the intensities of the image.
        return nn.sigmoid(Conv(1, conv_route=self.conv_route, name="conv_out")(x))


class VolumeCritic(nn.Module):
    """A volume to `outputs` numbers: stages that halve the sides, and a linear layer. The generator's mirror image.

    With one output a discriminator; with twice the size of a vector an encoder, to a mean and a logarithm of a
    variance. Attributes: as of `VolumeGenerator`.
    """

    outputs: int = 1
    channels: Sequence[int] = (16, 32, 64, 128, 256, 512)
    norm_num_groups: int = 16
    norm_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    conv_route: str = "planes_on_cpu"
    remat: bool | Sequence[int] = False

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """What the stages make of `[B, D, H, W, 1]`, first to last, and at the end the numbers `[B, outputs]`.

        The numbers are float32.
        """
        found = []
        for level, width in enumerate(self.channels[1:]):
            stage = nn.remat(_Down) if remat_at(level, self.remat) else _Down
            # One channel costs nothing in float32, and in bfloat16 a GPU may have no kernel for it.
            groups, dtype = (self.norm_num_groups, self.dtype) if level else (0, jnp.float32)
            x = stage(width, groups, self.norm_eps, dtype, self.conv_route, name=f"down_{level}")(x).astype(self.dtype)
            found.append(x)
        return [*found, Dense(self.outputs, name="linear")(x.reshape(x.shape[0], -1))]
