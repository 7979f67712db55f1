"""Residual and resampling blocks of the denoising UNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.layers import Conv, Dense, GroupNorm, average_pool, upsample_nearest

_zeros = nn.initializers.zeros_init()


class ResnetBlock(nn.Module):
    """Residual block with the time embedding added between its two convolutions.

    A condition embedding gives scale and shift of the second norm, per channel, zero at the start (adaptive group norm,
    Dhariwal and Nichol 2021).

    Attributes:
        resample: "up" or "down" resamples both the branch (before its first convolution) and the skip.

    Args of the call: `x` `[B, D, H, W, C]`; `shift` `[B, features]` from `embed_times`; `modulation` `[B, 2 features]`
    from `project_conditions`, or None.
    """

    features: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str
    resample: str | None = None

    def setup(self):
        norm = {"num_groups": self.norm_num_groups, "epsilon": self.norm_eps, "dtype": self.dtype}
        conv = {"dtype": self.dtype, "conv_route": self.conv_route}
        self.norm1 = GroupNorm(**norm)
        self.conv1 = Conv(self.features, upsample=self.resample == "up", **conv)
        self.time_emb_proj = Dense(self.features, dtype=self.dtype)
        self.norm2 = GroupNorm(**norm)
        self.condition_proj = Dense(2 * self.features, kernel_init=_zeros, dtype=self.dtype)
        self.conv2 = Conv(self.features, kernel_init=_zeros, **conv)
        self.skip_connection = Conv(self.features, kernel_size=1, **conv)  # where the widths differ

    def embed_times(self, time: jax.Array) -> jax.Array:
        """`[n, T]`, after its activation, to `[n, features]`."""
        return self.time_emb_proj(time)

    def project_conditions(self, embedded: jax.Array | None) -> jax.Array | None:
        """`[B, T]`, after its activation, to `[B, 2 features]`."""
        return None if embedded is None else self.condition_proj(embedded)

    def __call__(self, x: jax.Array, shift: jax.Array, modulation: jax.Array | None) -> jax.Array:
        h = nn.silu(self.norm1(x))
        if self.resample == "down":
            x, h = average_pool(x), average_pool(h)
        elif self.resample == "up":
            x = upsample_nearest(x)  # and `conv1` the branch
        h = self.conv1(h) + shift[:, None, None, None]
        h = self.norm2(h)
        if modulation is not None:
            scale, offset = jnp.split(modulation[:, None, None, None], 2, axis=-1)
            h = h * (1 + scale) + offset
        h = self.conv2(nn.silu(h))
        if x.shape[-1] != self.features:
            x = self.skip_connection(x)
        return x + h


class ConvDownsample(nn.Module):
    """Halve each side by a convolution of stride 2 with one zero on either end of each axis."""

    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array, *_) -> jax.Array:
        return Conv(x.shape[-1], stride=2, dtype=self.dtype, conv_route=self.conv_route, name="op")(x)


class ConvUpsample(nn.Module):
    """Double each side by repetition, then convolve."""

    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x: jax.Array, *_) -> jax.Array:
        return Conv(x.shape[-1], upsample=True, dtype=self.dtype, conv_route=self.conv_route, name="postconv")(x)
