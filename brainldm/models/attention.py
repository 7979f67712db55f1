"""Transformer blocks over the voxels of a feature map, as in MONAI's `SpatialTransformer`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from brainldm.models.layers import Conv, Dense, GroupNorm, LayerNorm


class SelfAttention(nn.Module):
    """Attention of all voxels to all voxels; scores and softmax in float32."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, channels = x.shape
        head_channels = channels // self.num_heads
        q, k, v = (
            Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x).reshape(
                batch, tokens, self.num_heads, head_channels
            )
            for name in ("to_q", "to_k", "to_v")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q.astype(jnp.float32), k.astype(jnp.float32))
        weights = jax.nn.softmax(scores * head_channels**-0.5, axis=-1).astype(v.dtype)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, channels)
        return Dense(channels, dtype=self.dtype, name="out_proj")(attended)


class OneTokenCrossAttention(nn.Module):
    """Cross-attention to a single context token.

    A softmax over one key is one, so the result is `out_proj(to_v(token))` at every voxel, whatever the
    queries and keys are. `to_q` and `to_k` exist for the sake of checkpoints and get no gradient.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, token: jax.Array) -> jax.Array:
        """`[B, condition_dim]` to `[B, 1, features]`."""
        linear = {"use_bias": False, "dtype": self.dtype}
        if self.is_initializing():
            Dense(self.features, **linear, name="to_q")(jnp.zeros((1, self.features), self.dtype))
            Dense(self.features, **linear, name="to_k")(token)
        value = Dense(self.features, **linear, name="to_v")(token)
        return Dense(self.features, dtype=self.dtype, name="out_proj")(value)[:, None, :]


class FeedForward(nn.Module):
    """Gated linear unit with the exact GELU (Shazeer 2020); four times as wide as its input."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h, gate = jnp.split(Dense(8 * channels, dtype=self.dtype, name="linear1")(x), 2, axis=-1)
        return Dense(channels, dtype=self.dtype, name="linear2")(h * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the condition (where there is one), feed-forward; each is a residual."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, token: jax.Array | None) -> jax.Array:
        attn1 = SelfAttention(self.num_heads, self.dtype, name="attn1")
        x = x + attn1(LayerNorm(dtype=self.dtype, name="norm1")(x))
        if token is not None:
            if self.is_initializing():  # it would feed the queries alone, see OneTokenCrossAttention
                LayerNorm(dtype=self.dtype, name="norm2")(x)
            x = x + OneTokenCrossAttention(x.shape[-1], self.dtype, name="attn2")(token)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(dtype=self.dtype, name="norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks between two 1 x 1 x 1 convolutions, added to the input.

    Args of the call: `x` `[B, D, H, W, C]`; `token` `[B, condition_dim]`, or None for self-attention alone,
    which leaves `attn2` and `norm2` out of the parameters.
    """

    num_heads: int
    num_layers: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, token: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        h = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x)
        h = Conv(channels, kernel_size=1, dtype=self.dtype, name="proj_in")(h)
        h = h.reshape(x.shape[0], -1, channels)
        for index in range(self.num_layers):
            h = TransformerBlock(self.num_heads, self.dtype, name=f"transformer_blocks_{index}")(h, token)
        h = h.reshape(x.shape)
        zeros = nn.initializers.zeros_init()
        return x + Conv(channels, kernel_size=1, kernel_init=zeros, dtype=self.dtype, name="proj_out")(h)
