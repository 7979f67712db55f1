"""The network that tells the age of a brain from its T1w image (Cole et al. 2017, arXiv 1612.02572)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.layers import Conv, Dense
from brainldm.models.remat import remat_at


class _Block(nn.Module):
    """Convolution, ReLU, convolution, batch norm, ReLU, the largest of every 2 x 2 x 2 voxels."""

    features: int
    train: bool
    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # One channel costs nothing in float32, and in bfloat16 a GPU may have no kernel for it.
        first = jnp.float32 if x.shape[-1] == 1 else self.dtype
        x = nn.relu(Conv(self.features, dtype=first, conv_route=self.conv_route, name="conv1")(x))
        x = Conv(self.features, dtype=self.dtype, conv_route=self.conv_route, name="conv2")(x)
        x = nn.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=self.dtype,
            name="norm",
        )(x)
        return nn.max_pool(nn.relu(x), (2, 2, 2), strides=(2, 2, 2))


class BrainAgeNet(nn.Module):
    """A volume to one number: blocks that halve the sides, and a linear layer on all that is left.

    The layers of Cole et al.: five blocks of 8, 16, 32, 64 and 128 features, 128 x 5 x 7 x 5 of which are left at full
    size. A last odd voxel of a side is left out by a block. The running variance is of the batch's biased variance.
    Collections: `params` and `batch_stats`.

    Attributes:
        channels: features of each block.
        dtype: type of the computation; parameters, norm statistics and the number are float32.
        conv_route: how convolutions are computed, see `layers.conv3d`.
        remat: blocks that are recomputed in the backward pass, see `remat.remat_at`.
    """

    channels: Sequence[int] = (8, 16, 32, 64, 128)
    dtype: jnp.dtype = jnp.float32
    conv_route: str = "planes_on_cpu"
    remat: bool | Sequence[int] = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """The number [B] and the features [B, channels[-1]], means over the last block's positions, both float32.

        Args:
            x: `[B, D, H, W, 1]` in [0, 1].
            train: normalise with the statistics of this batch, and update the running ones if `batch_stats` is mutable.
        """
        for index, width in enumerate(self.channels):
            block = nn.remat(_Block) if remat_at(index, self.remat) else _Block
            x = block(width, train, self.dtype, self.conv_route, name=f"block_{index}")(x)
        x = x.astype(jnp.float32)
        return Dense(1, name="linear")(x.reshape(x.shape[0], -1))[:, 0], x.mean((1, 2, 3))
