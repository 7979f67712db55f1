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
        """`[B, condition_dim]` to `[B, features]`."""
        linear = {"use_bias": False, "dtype": self.dtype}
        if self.is_initializing():
            Dense(self.features, **linear, name="to_q")(jnp.zeros((1, self.features), self.dtype))
            Dense(self.features, **linear, name="to_k")(token)
        value = Dense(self.features, **linear, name="to_v")(token)
        return Dense(self.features, dtype=self.dtype, name="out_proj")(value)


class FeedForward(nn.Module):
    """Gated linear unit with the exact GELU (Shazeer 2020); four times as wide as its input."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h, gate = jnp.split(Dense(8 * channels, dtype=self.dtype, name="linear1")(x), 2, axis=-1)
        return Dense(channels, dtype=self.dtype, name="linear2")(h * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the condition (where there is one), feed-forward; each is a residual.

    Args of the call: `x` `[B, voxels, features]`; `context` `[B, features]` from `project_conditions`, or None.
    """

    features: int
    num_heads: int
    dtype: jnp.dtype

    def setup(self):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(dtype=self.dtype) for _ in range(3))
        self.attn1 = SelfAttention(self.num_heads, self.dtype)
        self.attn2 = OneTokenCrossAttention(self.features, self.dtype)
        self.ff = FeedForward(self.dtype)

    def project_conditions(self, token: jax.Array | None) -> jax.Array | None:
        """What attention to `token` `[B, condition_dim]` adds to every voxel, `[B, features]`."""
        return None if token is None else self.attn2(token)

    def __call__(self, x: jax.Array, context: jax.Array | None) -> jax.Array:
        x = x + self.attn1(self.norm1(x))
        if context is not None:
            if self.is_initializing():  # it would feed the queries alone, see OneTokenCrossAttention
                self.norm2(x)
            x = x + context[:, None, :]
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks between two 1 x 1 x 1 convolutions, added to the input.

    Args of the call: `x` `[B, D, H, W, features]`; `contexts` from `project_conditions`. Without a token there is
    self-attention alone, and `attn2` and `norm2` are left out of the parameters.
    """

    features: int
    num_heads: int
    num_layers: int
    norm_num_groups: int
    norm_eps: float
    dtype: jnp.dtype

    def setup(self):
        zeros = nn.initializers.zeros_init()
        self.norm = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype)
        self.proj_in = Conv(self.features, kernel_size=1, dtype=self.dtype)
        self.transformer_blocks = [
            TransformerBlock(self.features, self.num_heads, self.dtype) for _ in range(self.num_layers)
        ]
        self.proj_out = Conv(self.features, kernel_size=1, kernel_init=zeros, dtype=self.dtype)

    def project_conditions(self, token: jax.Array | None) -> list[jax.Array | None]:
        """For each block, what attention to `token` `[B, condition_dim]` adds to every voxel, `[B, features]`."""
        return [block.project_conditions(token) for block in self.transformer_blocks]

    def __call__(self, x: jax.Array, contexts: list[jax.Array | None]) -> jax.Array:
        h = self.proj_in(self.norm(x)).reshape(x.shape[0], -1, self.features)
        for block, context in zip(self.transformer_blocks, contexts, strict=True):
            h = block(h, context)
        return x + self.proj_out(h.reshape(x.shape))
