"""Patch discriminator for adversarial training of the autoencoder (Isola et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.layers import Conv

_normal = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class DiscriminatorLayer(nn.Module):
    """Convolution without bias, batch norm, leaky ReLU."""

    features: int
    stride: int
    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(
            self.features,
            kernel_size=4,
            stride=self.stride,
            padding=((1, 1),) * 3,
            use_bias=False,
            kernel_init=_normal,
            dtype=self.dtype,
            conv_route=self.conv_route,
            name="conv",
        )(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            scale_init=_scale_init,
            use_fast_variance=False,
            dtype=self.dtype,
            name="norm",
        )(x)
        return nn.leaky_relu(x, 0.2)


class PatchDiscriminator(nn.Module):
    """Tells real from generated patches of a volume; layout and initial values of MONAI's `PatchDiscriminator`.

    Convolutions of size 4: the first and all layers but the last have stride 2, the width doubles with
    each layer. Initial values: kernels N(0, 0.02), biases zero, batch norm scale N(1, 0.02). Collections:
    `params` and `batch_stats`. The running variance is of the batch's biased variance, where PyTorch keeps
    the unbiased one; at these voxel counts they agree to four digits or better.

    Attributes:
        dtype: type of the computation; parameters, norm statistics and the logits are float32.
        conv_route: how convolutions are computed, see `layers.conv3d`.
    """

    channels: int = 96
    num_layers: int = 3
    in_channels: int = 1
    out_channels: int = 1
    dtype: jnp.dtype = jnp.float32
    conv_route: str = "planes_on_cpu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """Outputs of all layers, first to last; the last one is the logits.

        Args:
            x: `[B, D, H, W, in_channels]`.
            train: normalise with the statistics of this batch, and update the running ones if
                `batch_stats` is mutable.
        """
        ends = {"kernel_size": 4, "padding": ((1, 1),) * 3, "kernel_init": _normal, "conv_route": self.conv_route}
        x = Conv(self.channels, stride=2, **ends, name="initial_conv")(x).astype(self.dtype)
        outputs = [nn.leaky_relu(x, 0.2)]
        for index in range(self.num_layers):
            layer = DiscriminatorLayer(
                self.channels * 2 ** (index + 1),
                1 if index == self.num_layers - 1 else 2,
                self.dtype,
                self.conv_route,
                name=f"layers_{index}",
            )
            outputs.append(layer(outputs[-1], train))
        outputs.append(Conv(self.out_channels, **ends, name="final_conv")(outputs[-1]))
        return outputs
