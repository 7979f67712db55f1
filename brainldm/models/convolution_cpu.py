"""Three-dimensional convolution on a CPU: several ways of the same sum, the quickest by measurement.

Arrays are `[B, D, H, W, C]`, kernels `[kD, kH, kW, C_in, C_out]`, padding three pairs (zeros before, zeros after). A
convolution keeps its input and its kernel for the backward pass, and nothing else.
"""

from functools import partial
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
from jax import lax

from brainldm.models import winograd
from brainldm.models.convolution_table import quickest
from brainldm.models.winograd import Padding

FEW = 2**22
"""Multiplications below which a convolution takes no time, and only the compilation would be longer: XLA's direct one
is taken in place of `convolve`.
"""

_LARGE = 2**26  # numbers: 256 MiB of float32
_BLOCK = 2**21  # numbers that a large processor's cache holds


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, strides: tuple, padding: Padding) -> jax.Array:
    """Convolution (cross-correlation) by the way that is quickest for its shape; see `layers.conv3d` for shapes."""
    if strides != (1, 1, 1):
        return planes(x, kernel, padding, strides)
    return FORWARD[_quickest("forward", FORWARD, x, kernel)](x, kernel, padding)


def _keep(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding), (x, kernel)


def _gradients(strides, padding, kept, dy):
    x, kernel = kept
    around = tuple((size - 1 - a, size - 1 - b) for size, (a, b) in zip(kernel.shape[:3], padding, strict=True))
    if strides != (1, 1, 1) or min(map(min, around)) < 0:  # padding by less than nothing is no convolution's
        return jax.vjp(lambda x, kernel: planes(x, kernel, padding, strides), x, kernel)[1](dy)
    turned = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    dx = FORWARD[_quickest("forward", FORWARD, dy, turned)](dy, turned, around)
    way = KERNEL_GRADIENT[_quickest("kernel_gradient", KERNEL_GRADIENT, x, kernel)]
    return dx, way(x, dy, kernel.shape[:3], padding).astype(kernel.dtype)


convolve.defvjp(_keep, _gradients)


def _quickest(kind, ways, x, kernel):
    names = [name for name in ways if kernel.shape[:3] == (3, 3, 3) or name != "winograd"]
    return quickest(kind, names, prod(x.shape[:4]), *kernel.shape[3:])


def _only(axis, pair):
    return [pair if index == axis else (0, 0) for index in range(5)]


# --- the result -------------------------------------------------------------------------------------------------


def planes(x: jax.Array, kernel: jax.Array, padding: Padding, strides: tuple = (1, 1, 1)) -> jax.Array:
    """The first axis written out: one 2D convolution for each plane of the kernel."""
    batch, depth, *plane = x.shape
    size = kernel.shape[0]
    depth_out = (depth + sum(padding[0]) - size) // strides[0] + 1
    x = jnp.pad(x, _only(1, padding[0]))
    # Left to itself XLA computes all parts before it adds them up, which for a full-size volume is gigabytes. Small
    # ones are left to it, because waiting costs time.
    large = batch * depth_out * prod(plane[:2]) * kernel.shape[-1] > _LARGE
    total = None
    for offset in range(size):
        seen = x[:, offset : offset + strides[0] * (depth_out - 1) + 1 : strides[0]].reshape(-1, *plane)
        part = _plane(seen, kernel[offset], padding[1:], strides[1:])
        total = part if total is None else total + part
        if large:
            x, total = lax.optimization_barrier((x, total))
    return total.reshape(batch, depth_out, *total.shape[1:])


def stacked_planes(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """One 2D convolution, of the planes that a plane of the result sees side by side in the channels."""
    size = kernel.shape[0]
    x = jnp.pad(x, _only(1, padding[0]))
    depth_out = x.shape[1] - size + 1
    x = jnp.concatenate([x[:, tap : tap + depth_out] for tap in range(size)], axis=-1)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    y = _plane(x.reshape(-1, *x.shape[2:]), kernel, padding[1:])
    return y.reshape(x.shape[0], depth_out, *y.shape[1:])


_ORDER = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _plane(x, kernel, padding, strides=(1, 1)):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_ORDER)


def _keep_plane(x, kernel, padding, strides):
    return _plane(x, kernel, padding, strides), (x, kernel)


def _plane_gradients(padding, strides, kept, dy):
    """Both as convolutions in the order of axes of `_plane`. JAX's own have other orders, which XLA:CPU turns around
    in a program's outermost computation alone: inside of a condition or a loop they run as plain loops on one core,
    ten times slower and more (jaxlib 0.10.2)."""
    x, kernel = kept
    axes = list(zip(x.shape[1:3], kernel.shape, dy.shape[1:3], strides, padding, strict=False))
    # dy with zeros between its voxels reaches (steps - 1) * stride + 1 voxels far.
    around = [(size - 1 - a, side + a - (steps - 1) * stride - 1) for side, size, steps, stride, (a, _) in axes]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = lax.conv_general_dilated(dy, turned, (1, 1), around, lhs_dilation=strides, dimension_numbers=_ORDER)
    around = [(a, size - a + (steps - 1) * stride - side) for side, size, steps, stride, (a, _) in axes]
    x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)  # what is summed over comes in place of the channels
    dk = lax.conv_general_dilated(x, dy, (1, 1), around, rhs_dilation=strides, dimension_numbers=_ORDER)
    return dx, dk.transpose(1, 2, 0, 3)


_plane.defvjp(_keep_plane, _plane_gradients)


def taps(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """One product, of every voxel with every tap; the parts are moved to where they belong and summed. For few
    features.
    """
    sizes = kernel.shape[:3]
    numbers = (((4,), (4,)), ((), ()))
    parts = lax.dot_general(jnp.moveaxis(kernel, -2, -1), x, numbers, preferred_element_type=jnp.float32)
    parts = jnp.pad(parts, ((0, 0),) * 5 + tuple(padding))  # [kD, kH, kW, C_out, B, D, H, W]
    sides = [side - size + 1 for side, size in zip(parts.shape[5:], sizes, strict=True)]
    total = 0.0
    for tap in product(*map(range, sizes)):
        total += parts[tap][(..., *(slice(first, first + side) for first, side in zip(tap, sides, strict=True)))]
    return jnp.moveaxis(total, 0, -1).astype(x.dtype)


FORWARD = {"planes": planes, "stacked_planes": stacked_planes, "taps": taps, "winograd": winograd.convolve}
"""Ways of the convolution: `way(x, kernel, padding)`."""

# --- the gradient of its kernel ---------------------------------------------------------------------------------


def _by_transpose(x, dy, sizes, padding):
    """That of `planes`: a 2D convolution for each plane of the kernel."""
    kernel = jnp.zeros((*sizes, x.shape[-1], dy.shape[-1]), dy.dtype)
    return jax.vjp(lambda kernel: planes(x, kernel, padding), kernel)[1](dy)[0]


def _products(x, dy, sizes, padding):
    """A product for each row of taps: the input, moved, times the gradient at all places of the row. Block by block."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    dy = _moved(dy, 3, sizes[2])
    batch, depth, height, width = dy.shape[:4]
    numbers = batch * height * width * (x.shape[-1] + dy.shape[-1])
    step = max(1, min(depth, _BLOCK // numbers))
    blocks = -(-depth // step)
    behind = blocks * step - depth
    x, dy = (jnp.pad(a, _only(1, (0, behind))) for a in (x, dy))

    def block(index, total):
        columns = lax.dynamic_slice_in_dim(dy, index * step, step, axis=1).reshape(-1, dy.shape[-1])
        inputs = lax.dynamic_slice_in_dim(x, index * step, step + sizes[0] - 1, axis=1)
        rows = [inputs[:, a : a + step, b : b + height] for a in range(sizes[0]) for b in range(sizes[1])]
        return total + jnp.stack([_contracted(row.reshape(-1, row.shape[-1]), columns) for row in rows])

    start = jnp.zeros((sizes[0] * sizes[1], x.shape[-1], dy.shape[-1]), jnp.float32)
    total = block(0, start) if blocks == 1 else lax.fori_loop(0, blocks, block, start)
    return jnp.moveaxis(total.reshape(*sizes[:2], x.shape[-1], sizes[2], -1), 3, 2)


def _whole_products(x, dy, sizes, padding):
    """One product: the input times the gradient at the places of all taps. For few features."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    for axis in (3, 2, 1):
        dy = _moved(dy, axis, sizes[axis - 1])
    total = _contracted(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))
    return jnp.moveaxis(total.reshape(x.shape[-1], *sizes, -1), 0, 3)


def _moved(dy, axis, size):
    """The gradient as each tap along `axis` sees it, side by side in the channels, on a side longer by size - 1."""
    return jnp.concatenate([jnp.pad(dy, _only(axis, (tap, size - 1 - tap))) for tap in range(size)], axis=-1)


def _contracted(x, dy):
    return lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


KERNEL_GRADIENT = {
    "planes": _by_transpose,
    "products": _products,
    "taps": _whole_products,
    "winograd": lambda x, dy, sizes, padding: winograd.kernel_gradient(x, dy, padding),
}
"""Ways of the gradient of the kernel: `way(x, dy, sizes of the kernel, padding)`."""
