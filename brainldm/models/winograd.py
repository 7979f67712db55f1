"""Convolution of size 3 by Winograd's F(2, 3) along three axes, and the gradient of its kernel, block by block.

A tile of 4^3 voxels gives 2^3 voxels of the result by 64 products where the sum itself takes 216 (Lavin and Gray 2016,
"Fast algorithms for convolutional neural networks"). The transforms only add and halve, so the relative error in
float32 stays below 1e-5. They make eight numbers of each voxel: a volume goes through in blocks that a processor's
cache holds, which is quicker than all at once and takes little memory.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]

# What one block makes of its input and output, in numbers: 8 MiB of float32, which stays in a large processor's cache;
# but as many tiles that the products have work enough for the kernels that they read.
_BLOCK = 2**21
_FEWEST = 128


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolution of stride 1, `[B, D, H, W, C_in]` by `[3, 3, 3, C_in, C_out]`: in float32, returned in x's type."""
    dtype = x.dtype
    sides, tiles, blocks, x = _tiled(x.astype(jnp.float32), padding, kernel.shape[-1])
    transformed = _kernel_transform(kernel.astype(jnp.float32))

    def block(corner, y):
        tile = _input_transform(_cut(x, corner, tiles, 2))
        products = lax.dot_general(
            tile.reshape(64, -1, tile.shape[-1]),
            transformed.reshape(64, *kernel.shape[3:]),
            (((2,), (1,)), ((0,), (0,))),
        )
        part = _output_transform(products.reshape(*tile.shape[:-1], -1))
        return lax.dynamic_update_slice(y, part, (0, *corner, 0, 0))

    whole = (x.shape[0], *(side - 2 for side in x.shape[1:4]), kernel.shape[-1])
    y = _over_blocks(block, tiles, blocks, jnp.zeros(whole, jnp.float32))
    return y[:, : sides[0], : sides[1], : sides[2]].astype(dtype)


def kernel_gradient(x: jax.Array, dy: jax.Array, padding: Padding) -> jax.Array:
    """Gradient of `convolve` with respect to its kernel for the gradient `dy` of its result, `[3, 3, 3, C_in, C_out]`
    float32.
    """
    features = dy.shape[-1]
    sides, tiles, blocks, x = _tiled(x.astype(jnp.float32), padding, features)
    after = [(0, inner - 2 - side) for inner, side in zip(x.shape[1:4], sides, strict=True)]
    dy = jnp.pad(dy.astype(jnp.float32), ((0, 0), *after, (0, 0)))

    def block(corner, total):
        inputs = _input_transform(_cut(x, corner, tiles, 2))
        outputs = _output_transposed(_cut(dy, corner, tiles, 0))
        return total + lax.dot_general(
            inputs.reshape(64, -1, inputs.shape[-1]),
            outputs.reshape(64, -1, features),
            (((1,), (1,)), ((0,), (0,))),
        )

    total = _over_blocks(block, tiles, blocks, jnp.zeros((64, x.shape[-1], features), jnp.float32))
    return _kernel_transposed(total.reshape(4, 4, 4, *total.shape[1:]))


def _tiled(x: jax.Array, padding: Padding, features: int):
    """Sides of the result; tiles of a block along depth, height and width; numbers of blocks; x, padded to fit them."""
    sides = [side + sum(zeros) - 2 for side, zeros in zip(x.shape[1:4], padding, strict=True)]
    tiles = [-(-side // 2) for side in sides]
    most = max(_FEWEST, _BLOCK // (64 * (x.shape[-1] + features)))
    most = max(1, most // (x.shape[0] * tiles[2]))
    rows = min(tiles[1], most)
    blocks = (-(-tiles[0] // max(1, most // rows)), -(-tiles[1] // rows))
    tiles = (-(-tiles[0] // blocks[0]), -(-tiles[1] // blocks[1]), tiles[2])
    inner = [2 * tiles[0] * blocks[0] + 2, 2 * tiles[1] * blocks[1] + 2, 2 * tiles[2] + 2]
    widths = [
        (before, whole - side - before) for (before, _), whole, side in zip(padding, inner, x.shape[1:4], strict=True)
    ]
    return sides, tiles, blocks, jnp.pad(x, ((0, 0), *widths, (0, 0)))


def _over_blocks(block: Callable, tiles: Sequence[int], blocks: tuple[int, int], start: jax.Array) -> jax.Array:
    """`block((depth, height) of its first voxel, carry)` for every block."""
    if blocks == (1, 1):
        return block((0, 0), start)

    def body(index, carry):
        return block((2 * tiles[0] * (index // blocks[1]), 2 * tiles[1] * (index % blocks[1])), carry)

    return lax.fori_loop(0, blocks[0] * blocks[1], body, start)


def _cut(x: jax.Array, corner: tuple, tiles: Sequence[int], more: int) -> jax.Array:
    """The voxels of a block, with `more` of its neighbours' behind each of its ends."""
    sizes = (x.shape[0], 2 * tiles[0] + more, 2 * tiles[1] + more, *x.shape[3:])
    return lax.dynamic_slice(x, (0, *corner, 0, 0), sizes)


def _stacked(parts: list[jax.Array]) -> jax.Array:
    # The barrier keeps XLA from computing each axis anew for every part of the next, and from compiling all 64 parts.
    return lax.optimization_barrier(jnp.stack(parts))


def _halves(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Even and odd places along an axis."""
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    return tuple(lax.index_in_dim(pairs, odd, axis + 1, keepdims=False) for odd in (0, 1))


def _input_transform(x: jax.Array) -> jax.Array:
    """`[B, 2 D + 2, 2 H + 2, 2 W + 2, C]` to `[4, 4, 4, B, D, H, W, C]`, the last axis first."""
    for axis in (1, 3, 5):  # each turn has put one more axis in front
        even, odd = _halves(x, axis)
        count = even.shape[axis] - 1
        (d0, d2), (d1, d3) = (
            (lax.slice_in_dim(a, 0, count, axis=axis), lax.slice_in_dim(a, 1, None, axis=axis)) for a in (even, odd)
        )
        x = _stacked([d0 - d2, d1 + d2, d2 - d1, d1 - d3])
    return x


def _output_transform(products: jax.Array) -> jax.Array:
    """`[4, 4, 4, B, D, H, W, C]` to `[B, 2 D, 2 H, 2 W, C]`."""
    for axis in (5, 3, 1):  # of the products' voxels once the axis in front is gone
        p0, p1, p2, p3 = products
        pairs = jnp.stack([p0 + p1 + p2, p1 - p2 - p3], axis=axis + 1)
        products = pairs.reshape(*p0.shape[:axis], 2 * p0.shape[axis], *p0.shape[axis + 1 :])
    return products


def _output_transposed(dy: jax.Array) -> jax.Array:
    """`[B, 2 D, 2 H, 2 W, C]` to `[4, 4, 4, B, D, H, W, C]`: the transpose of `_output_transform`."""
    for axis in (1, 3, 5):
        even, odd = _halves(dy, axis)
        dy = _stacked([even, even + odd, even - odd, -odd])
    return dy


def _kernel_transform(kernel: jax.Array) -> jax.Array:
    """`[3, 3, 3, C_in, C_out]` to `[4, 4, 4, C_in, C_out]`, the last axis first."""
    for axis in (0, 1, 2):
        g0, g1, g2 = (lax.index_in_dim(kernel, tap, axis, keepdims=False) for tap in range(3))
        kernel = _stacked([g0, (g0 + g2 + g1) / 2, (g0 + g2 - g1) / 2, g2])
    return kernel


def _kernel_transposed(products: jax.Array) -> jax.Array:
    """`[4, 4, 4, C_in, C_out]`, the last axis first, to `[3, 3, 3, C_in, C_out]`: the transpose of the above."""
    for axis in (2, 1, 0):
        p0, p1, p2, p3 = products
        half = (p1 + p2) / 2
        products = lax.optimization_barrier(jnp.stack([p0 + half, (p1 - p2) / 2, half + p3], axis=axis))
    return products
