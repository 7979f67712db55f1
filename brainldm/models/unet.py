"""Denoising UNet in the latent space (Rombach et al. 2022; Pinaya et al. 2022).

Modules and parameters follow the layout of MONAI's `DiffusionModelUNet`, so that a parameter path such as
`down_blocks_1/resnets_0/conv1/kernel` is a checkpoint key read with other separators.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.attention import SpatialTransformer
from brainldm.models.kernels import cast_kernels
from brainldm.models.layers import Conv, Dense, GroupNorm, timestep_embedding
from brainldm.models.remat import remat_at
from brainldm.models.unet_blocks import ConvDownsample, ConvUpsample, ResnetBlock
from brainldm.runtime.errors import UserError

_zeros = nn.initializers.zeros_init()


class UNetLevel(nn.Module):
    """The blocks of one level on the way down (`up` False) or up.

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

    def setup(self):
        resnet = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        transformer = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        self.resnets = [resnet(self.features, *common, self.conv_route) for _ in range(self.num_resnets)]
        if self.num_heads:
            layers = (self.features, self.num_heads, self.transformer_num_layers)
            self.attentions = [transformer(*layers, *common) for _ in range(self.num_resnets)]
        if not self.resample:
            return
        if self.resblock_updown:
            sampler = resnet(self.features, *common, self.conv_route, "up" if self.up else "down")
        else:
            sampler = (ConvUpsample if self.up else ConvDownsample)(self.dtype, self.conv_route)
        if self.up:
            self.upsampler = sampler
        else:
            self.downsampler = sampler

    def _residual_blocks(self):
        """The residual blocks in their order, the resampling one last."""
        if self.resample and self.resblock_updown:
            return [*self.resnets, self.upsampler if self.up else self.downsampler]
        return self.resnets

    def embed_times(self, time):
        return [block.embed_times(time) for block in self._residual_blocks()]

    def project_conditions(self, embedded, token):
        contexts = [block.project_conditions(token) for block in self.attentions] if self.num_heads else []
        return [block.project_conditions(embedded) for block in self._residual_blocks()], contexts

    def __call__(self, x, skips, times, conditions):
        modulations, contexts = conditions
        skips = list(skips)
        for index, resnet in enumerate(self.resnets):
            if self.up:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = resnet(x, times[index], modulations[index])
            if self.num_heads:
                x = self.attentions[index](x, contexts[index])
            if not self.up:
                skips.append(x)
        if self.resample:
            sampler = self.upsampler if self.up else self.downsampler
            x = sampler(x, times[-1], modulations[-1])
            if not self.up:
                skips.append(x)
        return x, skips


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block."""

    features: int
    num_heads: int
    transformer_num_layers: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    conv_route: str

    def setup(self):
        common = (self.norm_num_groups, self.norm_eps, self.dtype)
        self.resnet_1 = ResnetBlock(self.features, *common, self.conv_route)
        self.attention = SpatialTransformer(self.features, self.num_heads, self.transformer_num_layers, *common)
        self.resnet_2 = ResnetBlock(self.features, *common, self.conv_route)

    def embed_times(self, time):
        return [block.embed_times(time) for block in (self.resnet_1, self.resnet_2)]

    def project_conditions(self, embedded, token):
        modulations = [block.project_conditions(embedded) for block in (self.resnet_1, self.resnet_2)]
        return modulations, self.attention.project_conditions(token)

    def __call__(self, x, times, conditions):
        modulations, context = conditions
        x = self.attention(self.resnet_1(x, times[0], modulations[0]), context)
        return self.resnet_2(x, times[1], modulations[1])


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
        condition_flags: single conditions may be NaN, which is "not given": the null condition takes their place, and
            one more input for each says whether it was given, so that no value can be mistaken for none.
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
    condition_flags: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool | Sequence[int] = False
    conv_route: str = "planes_on_cpu"

    def setup(self):
        hidden, levels = 4 * self.channels[0], len(self.channels)
        self.time_embed_0, self.time_embed_2 = Dense(hidden), Dense(hidden)
        if self.adaptive_norm:
            self.condition_embed_0, self.condition_embed_2 = Dense(hidden), Dense(hidden)
        if self.null_condition == "learned" and self._conditional:  # read by `null_conditions`
            self.param("null_condition", nn.initializers.constant(-1.0), (self.condition_dim,), jnp.float32)
        common = {
            "transformer_num_layers": self.transformer_num_layers,
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "dtype": self.dtype,
            "conv_route": self.conv_route,
        }
        self.conv_in = Conv(self.channels[0], conv_route=self.conv_route)
        self.down_blocks = [self._level(level, up=False, **common) for level in range(levels)]
        middle = nn.remat(MiddleBlock) if remat_at(levels - 1, self.remat) else MiddleBlock
        self.middle_block = middle(self.channels[-1], self._heads(levels - 1), **common)
        self.up_blocks = [self._level(level, up=True, **common) for level in reversed(range(levels))]
        self.out_0 = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps)
        self.out_2 = Conv(self.out_channels, kernel_init=_zeros, conv_route=self.conv_route)

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
        return self.predict(x, self.embed_times(t), self.project_conditions(condition))

    def embed_times(self, t: jax.Array) -> Any:
        """What `predict` needs of time steps `t` `[n]`: a pytree of arrays `[n, ...]`, one for each residual block.

        A sampler makes those of all its steps at once, before its loop.
        """
        time = self.time_embed_0(timestep_embedding(t, self.channels[0]))
        time = nn.silu(self.time_embed_2(nn.silu(time)))
        return [block.embed_times(time) for block in self._blocks()]

    def project_conditions(self, condition: jax.Array | None) -> Any:
        """What `predict` needs of conditions `[B, condition_dim]`: a pytree of arrays `[B, ...]`.

        Raises UserError for a missing condition or one of another length.
        """
        if not self._conditional:
            return None, [block.project_conditions(None, None) for block in self._blocks()]
        if condition is None or condition.shape[1:] != (self.condition_dim,):
            found = "none was given" if condition is None else f"{condition.shape} was given"
            raise UserError(f"The UNet needs a condition of shape (batch, {self.condition_dim}); {found}.")
        condition, embedded = self._filled(condition.astype(jnp.float32)), None
        if self.adaptive_norm:
            embedded = nn.silu(self.condition_embed_2(nn.silu(self.condition_embed_0(condition))))
        token = condition if self.cross_attention else None
        channels = condition if self.concat else None
        return channels, [block.project_conditions(embedded, token) for block in self._blocks()]

    def predict(self, x: jax.Array, times: Any, conditions: Any) -> jax.Array:
        """As the call, from what `embed_times` and `project_conditions` made, rows `[B, ...]` of both."""
        factor = 2 ** (len(self.channels) - 1)
        if any(side % factor for side in x.shape[1:4]):
            raise UserError(
                f"The UNet halves each side {len(self.channels) - 1} times, so the sides of a latent code "
                f"must be multiples of {factor}; this one is {' x '.join(map(str, x.shape[1:4]))}. "
                "Crop or pad it."
            )
        channels, conditions = conditions
        if channels is not None:
            constant = jnp.broadcast_to(channels[:, None, None, None], (*x.shape[:4], channels.shape[-1]))
            x = jnp.concatenate([x, constant.astype(x.dtype)], axis=-1)
        x = self.conv_in(x).astype(self.dtype)
        skips = [x]
        for block, *inputs in zip(self._blocks(), times, conditions, strict=True):
            if isinstance(block, MiddleBlock):
                x = block(x, *inputs)
            else:
                x, skips = block(x, skips, *inputs)
        return self.out_2(nn.silu(self.out_0(x)))

    def cast_params(self, params: Any) -> Any:
        """Parameters (no bound module is needed) in the type that the computation reads them in.

        For `apply` they are as good as those given, bit for bit: each layer casts its own otherwise, in a loop in every
        turn. What is read in float32 stays: the norms' parameters, the first and last convolution, the embeddings, the
        kernels of upsampling convolutions.
        """
        blocks = ("down_blocks_", "middle_block", "up_blocks_")
        return {
            name: cast_kernels(leaf, self.dtype) if name.startswith(blocks) else leaf for name, leaf in params.items()
        }

    def null_conditions(self) -> jax.Array:
        """What stands for "no condition", `[condition_dim]` float32: `apply(variables, method="null_conditions")`."""
        if self.condition_flags:
            return jnp.full((self.condition_dim,), jnp.nan, jnp.float32)
        return self._null_values()

    def _null_values(self) -> jax.Array:
        if self.null_condition != "learned":
            return jnp.full((self.condition_dim,), self.null_condition, jnp.float32)
        return self.get_variable("params", "null_condition")

    def _filled(self, condition: jax.Array) -> jax.Array:
        """Conditions `[B, K]` as all three ways take them: with flags `[B, 2 K]`, values and then whether given."""
        if not self.condition_flags:
            return condition
        given = ~jnp.isnan(condition)
        values = jnp.where(given, condition, self._null_values())
        return jnp.concatenate([values, given.astype(jnp.float32)], axis=-1)

    @property
    def _conditional(self) -> bool:
        return self.concat or self.cross_attention or self.adaptive_norm

    def _blocks(self) -> list[nn.Module]:
        return [*self.down_blocks, self.middle_block, *self.up_blocks]

    def _level(self, level: int, up: bool, **common) -> UNetLevel:
        return UNetLevel(
            features=self.channels[level],
            num_resnets=self.num_res_blocks + up,
            num_heads=self._heads(level) if self.attention_levels[level] else 0,
            up=up,
            resample=level > 0 if up else level < len(self.channels) - 1,
            resblock_updown=self.resblock_updown,
            remat=remat_at(level, self.remat),
            **common,
        )

    def _heads(self, level: int) -> int:
        width, head = self.channels[level], self.num_head_channels[level]
        if head < 1 or width % head:
            raise UserError(
                f"Level {level} of the UNet has {width} channels and attention with {head} channels a head "
                f"(num_head_channels); the first must be a multiple of the second."
            )
        return width // head
