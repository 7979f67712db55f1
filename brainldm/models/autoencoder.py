"""Autoencoder with a KL-regularised latent space (Rombach et al. 2022; Pinaya et al. 2022).

Modules and parameters follow the layout of MONAI's `AutoencoderKL`, block by block, so that a parameter path
such as `encoder/blocks_4/conv1/kernel` is a checkpoint key read with other separators.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.layers import Conv, GroupNorm, torch_uniform
from brainldm.models.remat import remat_at
from brainldm.runtime.errors import UserError


def _same(x: jax.Array) -> jax.Array:
    return x


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input (through a 1 x 1 x 1 convolution if widths differ).

    last_kernel_init: initial values of the second convolution's kernel.
    """

    features: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str
    last_kernel_init: nn.initializers.Initializer = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = {"num_groups": self.norm_num_groups, "epsilon": self.norm_eps, "dtype": self.dtype}
        conv = {"dtype": self.dtype, "conv_route": self.conv_route}
        h = nn.silu(GroupNorm(**norm, name="norm1")(x))
        h = Conv(self.features, **conv, name="conv1")(h)
        h = nn.silu(GroupNorm(**norm, name="norm2")(h))
        h = Conv(self.features, **conv, kernel_init=self.last_kernel_init, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, **conv, name="nin_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halve each side: one zero after the last voxel of each axis, then a convolution of stride 2."""

    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = {"dtype": self.dtype, "conv_route": self.conv_route}
        return Conv(x.shape[-1], stride=2, padding=((0, 1),) * 3, **conv, name="conv")(x)


class Upsample(nn.Module):
    """Double each side by repetition, then convolve."""

    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = {"dtype": self.dtype, "conv_route": self.conv_route}
        return Conv(x.shape[-1], upsample=True, **conv, name="postconv")(x)


class Coder(nn.Module):
    """What an encoder and a decoder are told, see `AutoencoderKL`; `out_channels` are those of its own result."""

    channels: Sequence[int]
    out_channels: int
    num_res_blocks: int | Sequence[int]
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str
    remat: bool | Sequence[int]

    @property
    def block(self) -> tuple:
        """The arguments of a residual block that follow its width."""
        return self.norm_num_groups, self.norm_eps, self.dtype, self.conv_route


class Encoder(Coder):
    """`[B, D, H, W, in]` to `[B, D/f, H/f, W/f, out]`, f = 2 to the number of levels less one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # One channel costs nothing in float32, and in bfloat16 a GPU may have no kernel for it.
        x = Conv(self.channels[0], conv_route=self.conv_route, name="blocks_0")(x).astype(self.dtype)
        index = 1
        for level, width in enumerate(self.channels):
            residual = nn.remat(ResidualBlock) if remat_at(level, self.remat) else ResidualBlock
            for _ in range(self.num_res_blocks):
                x = residual(width, *self.block, name=f"blocks_{index}")(x)
                index += 1
            if level < len(self.channels) - 1:
                x = Downsample(self.dtype, self.conv_route, name=f"blocks_{index}")(x)
                index += 1
        x = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, name=f"blocks_{index}")(x)
        return Conv(self.out_channels, conv_route=self.conv_route, name=f"blocks_{index + 1}")(x)


class Decoder(Coder):
    """The encoder's mirror image. No activation before the last convolution and none after it."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        widths = tuple(reversed(self.channels))
        x = Conv(widths[0], conv_route=self.conv_route, name="blocks_0")(z).astype(self.dtype)
        index = 1
        for level, width in enumerate(widths):
            recomputed = remat_at(len(widths) - 1 - level, self.remat)
            residual = nn.remat(ResidualBlock) if recomputed else ResidualBlock
            for _ in range(self.num_res_blocks):
                x = residual(width, *self.block, name=f"blocks_{index}")(x)
                index += 1
            if level < len(widths) - 1:
                x = Upsample(self.dtype, self.conv_route, name=f"blocks_{index}")(x)
                index += 1
        x = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name=f"blocks_{index}")(x)
        # float32: bfloat16 has 8 bits, which would show as steps in the intensities of the image.
        return Conv(self.out_channels, conv_route=self.conv_route, name=f"blocks_{index + 1}")(x)


class AutoencoderKL(nn.Module):
    """The paper's autoencoder: 160 x 224 x 160 x 1 voxels to 20 x 28 x 20 x 3 latent values and back.

    Initial values: convolutions as PyTorch draws them with zero biases, norms one and zero; the posterior starts
    narrow, with a log variance near -6.

    Attributes:
        channels: width of each level; every level but the last halves the sides.
        dtype: type of the computation (float32 or bfloat16). Parameters and the statistics of the norms are
            float32, and so are the first and last convolution, `mu`, `sigma` and the decoded image.
        remat: recompute the residual blocks in the backward pass in place of keeping their insides: True, or the
            levels at which (0 has the full resolution).
        mirrored: the network was trained on volumes whose first axis runs from right to left; those given and
            returned run from left to right all the same. Latents keep the direction that the network knows.
        conv_route: how convolutions are computed, see `layers.conv3d`.
    """

    in_channels: int = 1
    out_channels: int = 1
    latent_channels: int = 3
    channels: Sequence[int] = (64, 128, 128, 128)
    num_res_blocks: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: bool | Sequence[int] = False
    mirrored: bool = False
    conv_route: str = "planes_on_cpu"

    def setup(self):
        shared = {
            "channels": tuple(self.channels),
            "num_res_blocks": self.num_res_blocks,
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "dtype": self.dtype,
            "conv_route": self.conv_route,
            "remat": self.remat,
        }
        encoder, decoder = self._coders()
        self.encoder = encoder(out_channels=self.latent_channels, **shared)
        self.decoder = decoder(out_channels=self.out_channels, **shared)
        self.quant_conv_mu = Conv(self.latent_channels, kernel_size=1)
        # A posterior that starts wide (log variance 0) drowns the code in noise and slows the first epochs.
        narrow = nn.initializers.constant(-6.0)
        self.quant_conv_log_sigma = Conv(self.latent_channels, kernel_size=1, bias_init=narrow)
        self.post_quant_conv = Conv(self.latent_channels, kernel_size=1)

    @property
    def halvings(self) -> int:
        """How many times each side is halved on the way to the latent."""
        return len(self.channels) - 1

    def _coders(self) -> tuple[type[Coder], type[Coder]]:
        return Encoder, Decoder

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation of the latent code.

        Args:
            x: `[B, D, H, W, in_channels]`, intensities in [0, 1].

        Returns:
            `mu`, `sigma`: `[B, d, h, w, latent_channels]` float32, with
            `sigma = exp(0.5 * clip(log variance, -30, 20))`.

        Raises:
            UserError: a side does not divide by 2 to the number of levels less one.
        """
        factor = 2**self.halvings
        if any(side % factor for side in x.shape[1:4]):
            raise UserError(
                f"The autoencoder halves each side {self.halvings} times, so the sides of a volume "
                f"must be multiples of {factor}; this one is {' x '.join(map(str, x.shape[1:4]))}. "
                "Crop or pad it."
            )
        h = self.encoder(x[:, ::-1] if self.mirrored else x)
        mu = self.quant_conv_mu(h)
        log_variance = jnp.clip(self.quant_conv_log_sigma(h), -30.0, 20.0)
        return mu, jnp.exp(0.5 * log_variance)

    def decode(self, z: jax.Array) -> jax.Array:
        """Image of a latent code: `[B, d, h, w, latent_channels]` to `[B, D, H, W, out_channels]` float32.

        The image is not clipped to [0, 1].
        """
        image = self.decoder(self.post_quant_conv(z))
        return image[:, ::-1] if self.mirrored else image

    def __call__(
        self, x: jax.Array, key: jax.Array | None = None, between: Callable[[jax.Array], jax.Array] = _same
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Encode and decode.

        Args:
            x: `[B, D, H, W, in_channels]`.
            key: random key for the latent noise; without it the mean is decoded.
            between: what is done to the latent before it is decoded.

        Returns:
            reconstruction, `mu`, `sigma`, as `decode` and `encode` return them.
        """
        mu, sigma = self.encode(x)
        if key is None:
            return self.decode(between(mu)), mu, sigma
        # The same numbers as drawn in the shape of mu: for the indices of five axes XLA compiles long on a CPU.
        noise = jax.random.normal(key, (*mu.shape[:2], math.prod(mu.shape[2:])), mu.dtype).reshape(mu.shape)
        return self.decode(between(mu + sigma * noise)), mu, sigma
