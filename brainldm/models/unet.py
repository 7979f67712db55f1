"""Denoising UNet in the latent space (Rombach et al. 2022; Pinaya et al. 2022).

Modules and parameters follow the layout of MONAI's `DiffusionModelUNet`, so that a parameter path such as
`down_blocks_1/resnets_0/conv1/kernel` is a checkpoint key read with other separators.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.attention import SpatialTransformer
from brainldm.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    average_pool,
    timestep_embedding,
    upsample_nearest,
)
from brainldm.models.remat import remat_at
from brainldm.runtime.errors import UserError

_zeros = nn.initializers.zeros_init()


class ResnetBlock(nn.Module):
    """Residual block with the time embedding added between its two convolutions.

    Attributes:
        resample: "up" or "down" resamples both the branch (before its first convolution) and the skip.

    Args of the call: `x` `[B, D, H, W, C]`; `time` `[B, T]` after its activation; `condition` `[B, T]` after
    its activation, or None. A condition embedding gives scale and shift of the second norm, per channel,
    zero at the start (adaptive group norm, Dhariwal and Nichol 2021).
    """

    features: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str
    resample: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, condition: jax.Array | None) -> jax.Array:
        norm = {"num_groups": self.norm_num_groups, "epsilon": self.norm_eps, "dtype": self.dtype}
        h = nn.silu(GroupNorm(**norm, name="norm1")(x))
        if self.resample is not None:
            change = upsample_nearest if self.resample == "up" else average_pool
            x, h = change(x), change(h)
        conv = {"dtype": self.dtype, "conv_route": self.conv_route}
        h = Conv(self.features, **conv, name="conv1")(h)
        h = h + Dense(self.features, dtype=self.dtype, name="time_emb_proj")(time)[:, None, None, None]
        h = GroupNorm(**norm, name="norm2")(h)
        if condition is not None:
            modulation = Dense(2 * self.features, kernel_init=_zeros, dtype=self.dtype, name="condition_proj")(
                condition
            )
            scale, shift = jnp.split(modulation[:, None, None, None], 2, axis=-1)
            h = h * (1 + scale) + shift
        h = Conv(self.features, kernel_init=_zeros, **conv, name="conv2")(nn.silu(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=1, **conv, name="skip_connection")(x)
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
        conv = Conv(x.shape[-1], dtype=self.dtype, conv_route=self.conv_route, name="postconv")
        return conv(upsample_nearest(x))


class UNetLevel(nn.Module):
    """The blocks of one level on the way down (`up` False), up, or in the middle.

    On the way down it returns the features after each block (and the downsampler), which the way up reads
    back from the end of the list.
    """

    features: int
    num_resnets: int
    num_heads: int  # 0: no attention
    up: bool
    resample: bool
    resblock_updown: bool
    transformer_num_layers: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str
    remat: bool

    @nn.compact
    def __call__(self, x, skips, time, condition, token):
        resnet_class = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        transformer_class = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        skips = list(skips)
        for index in range(self.num_resnets):
            if self.up:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = resnet_class(self.features, *common, self.conv_route, name=f"resnets_{index}")(x, time, condition)
            if self.num_heads:
                attention = transformer_class(
                    self.num_heads, self.transformer_num_layers, *common, name=f"attentions_{index}"
                )
                x = attention(x, token)
            if not self.up:
                skips.append(x)
        if self.resample:
            name = "upsampler" if self.up else "downsampler"
            if self.resblock_updown:
                direction = "up" if self.up else "down"
                sampler = resnet_class(self.features, *common, self.conv_route, direction, name=name)
            else:
                sampler = (ConvUpsample if self.up else ConvDownsample)(self.dtype, self.conv_route, name=name)
            x = sampler(x, time, condition)
            if not self.up:
                skips.append(x)
        return x, skips


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block."""

    num_heads: int
    transformer_num_layers: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str

    @nn.compact
    def __call__(self, x, time, condition, token):
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        x = ResnetBlock(x.shape[-1], *common, self.conv_route, name="resnet_1")(x, time, condition)
        attention = SpatialTransformer(self.num_heads, self.transformer_num_layers, *common, name="attention")
        x = attention(x, token)
        return ResnetBlock(x.shape[-1], *common, self.conv_route, name="resnet_2")(x, time, condition)


class DiffusionUNet(nn.Module):
    """Predicts the noise (or velocity) of a latent code from the noisy code, the time and the conditions.

    The conditions enter in three ways, each of which can be switched:
    `concat` appends them to the latent code as constant channels; `cross_attention` gives them to the
    transformer blocks as one context token; `adaptive_norm` turns them, through a small network, into scale
    and shift of the residual blocks' second norm. The paper uses the first two. Without `cross_attention` the
    transformer blocks have self-attention alone: `attn2` and `norm2` are left out.

    Initial values: convolutions and linear layers as PyTorch draws them, biases zero; zero kernels, as in
    MONAI, for the second convolution of residual blocks, the output projection of the transformers and the
    last convolution, so that a new network predicts zero; also for the adaptive norm's scale and shift.

    Attributes:
        in_channels: latent channels, without the condition's.
        num_head_channels: channels of an attention head at each level; levels without attention ignore
            theirs. The block in the middle has the last level's.
        null_condition: what stands for "no condition" (for classifier-free guidance): a number for all
            conditions, or "learned" for a parameter `null_condition` `[condition_dim]`, which starts at -1.
        dtype: type of the computation. Parameters, statistics of norms, attention scores, the first and last
            convolution and the result are float32.
        remat: recompute blocks in the backward pass in place of keeping their insides: True, or the levels at which
            (0 has the full resolution; the middle belongs to the last one).
        conv_route: how convolutions are computed, see `layers.conv3d`.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: Sequence[int] = (256, 512, 768)
    num_res_blocks: int = 2
    attention_levels: Sequence[bool] = (False, True, True)
    num_head_channels: Sequence[int] = (0, 512, 768)
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    resblock_updown: bool = True
    transformer_num_layers: int = 1
    condition_dim: int = 4
    concat: bool = True
    cross_attention: bool = True
    adaptive_norm: bool = False
    null_condition: str | float = -1.0
    dtype: jnp.dtype = jnp.float32
    remat: bool | Sequence[int] = False
    conv_route: str = "planes_on_cpu"

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Predict.

        Args:
            x: noisy latent code `[B, D, H, W, in_channels]`.
            t: time steps `[B]`, integers or floats on the scale of 0 to 1000.
            condition: `[B, condition_dim]` float32, normalised; rows of `null_conditions` stand for none. Needed
                unless all three ways are off.

        Returns:
            `[B, D, H, W, out_channels]` float32.

        Raises:
            UserError: sides that the levels cannot halve, a missing condition or one of another length.
        """
        condition = self._condition(x, condition)
        token = condition if self.cross_attention else None
        if self.concat:
            constant = jnp.broadcast_to(
                condition[:, None, None, None].astype(x.dtype), (*x.shape[:4], self.condition_dim)
            )
            x = jnp.concatenate([x, constant], axis=-1)

        hidden = 4 * self.channels[0]
        time = timestep_embedding(t, self.channels[0])
        time = Dense(hidden, name="time_embed_0")(time)
        time = nn.silu(Dense(hidden, name="time_embed_2")(nn.silu(time)))
        embedded = None
        if self.adaptive_norm:
            embedded = Dense(hidden, name="condition_embed_0")(condition)
            embedded = nn.silu(Dense(hidden, name="condition_embed_2")(nn.silu(embedded)))

        common = {
            "transformer_num_layers": self.transformer_num_layers,
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "dtype": self.dtype,
            "conv_route": self.conv_route,
        }
        x = Conv(self.channels[0], conv_route=self.conv_route, name="conv_in")(x).astype(self.dtype)
        skips = [x]
        levels = len(self.channels)
        for index in range(levels):
            x, skips = self._level(index, up=False, name=f"down_blocks_{index}", **common)(
                x, skips, time, embedded, token
            )
        x = self._middle(**common)(x, time, embedded, token)
        for index in range(levels):
            x, skips = self._level(levels - 1 - index, up=True, name=f"up_blocks_{index}", **common)(
                x, skips, time, embedded, token
            )
        x = nn.silu(GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, name="out_0")(x))
        return Conv(self.out_channels, kernel_init=_zeros, conv_route=self.conv_route, name="out_2")(x)

    def null_conditions(self) -> jax.Array:
        """What stands for "no condition", `[condition_dim]` float32: `apply(variables, method="null_conditions")`."""
        if self.null_condition != "learned":
            return jnp.full((self.condition_dim,), self.null_condition, jnp.float32)
        return self.get_variable("params", "null_condition")

    def _level(self, level: int, up: bool, name: str, **common) -> UNetLevel:
        return UNetLevel(
            features=self.channels[level],
            num_resnets=self.num_res_blocks + up,
            num_heads=self._heads(level) if self.attention_levels[level] else 0,
            up=up,
            resample=level > 0 if up else level < len(self.channels) - 1,
            resblock_updown=self.resblock_updown,
            remat=remat_at(level, self.remat),
            name=name,
            **common,
        )

    def _middle(self, **common) -> MiddleBlock:
        block = nn.remat(MiddleBlock) if remat_at(len(self.channels) - 1, self.remat) else MiddleBlock
        return block(self._heads(len(self.channels) - 1), name="middle_block", **common)

    def _heads(self, level: int) -> int:
        width, head = self.channels[level], self.num_head_channels[level]
        if head < 1 or width % head:
            raise UserError(
                f"Level {level} of the UNet has {width} channels and attention with {head} channels a head "
                f"(num_head_channels); the first must be a multiple of the second."
            )
        return width // head

    def _condition(self, x, condition):
        factor = 2 ** (len(self.channels) - 1)
        if any(side % factor for side in x.shape[1:4]):
            raise UserError(
                f"The UNet halves each side {len(self.channels) - 1} times, so the sides of a latent code "
                f"must be multiples of {factor}; this one is {' x '.join(map(str, x.shape[1:4]))}. "
                "Crop or pad it."
            )
        if not (self.concat or self.cross_attention or self.adaptive_norm):
            return None
        expected = (x.shape[0], self.condition_dim)
        if condition is None or condition.shape != expected:
            found = "none was given" if condition is None else f"{condition.shape} was given"
            raise UserError(f"The UNet needs a condition of shape {expected}; {found}.")
        if self.null_condition == "learned" and self.is_initializing():  # read by `null_conditions`
            self.param("null_condition", nn.initializers.constant(-1.0), (self.condition_dim,), jnp.float32)
        return condition.astype(jnp.float32)
