"""Doubling each side by repetition and convolving, computed as one transposed convolution.

Along an axis each output voxel of a 3^3 convolution over repeated voxels sees two different voxels, not three: two taps
of the kernel meet the same one. Adding those taps up first leaves 8 of 27 multiplications, and the repeated array is
never made.
"""

from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

_SIDES = (0, 1, 2)  # the spatial axes of a kernel
_NUMBERS = ("NDHWC", "DHWIO", "NDHWC")


def upsample_conv3d(x: jax.Array, kernel: jax.Array, route: str = "planes_on_cpu") -> jax.Array:
    """Every voxel twice along each axis, then a 3^3 convolution with one zero at either end.

    Exact, also at the borders; only the order of the sums differs. The form is chosen when the program is lowered: a
    TPU spreads the input inside its convolution, a GPU takes what its library has for the gradient of a convolution of
    stride 2, a CPU convolutions of size 2, and so do sharded arrays, which a convolution that spreads its input would
    gather.

    Args:
        x: `[B, D, H, W, C_in]`.
        kernel: `[3, 3, 3, C_in, C_out]`, float32, so that its sums are rounded to the type of `x` once.
        route: one of `layers.CONV_ROUTES`.

    Returns:
        `[B, 2 D, 2 H, 2 W, C_out]` of the type of `x`.
    """
    kernel = _summed_over_repeats(kernel).astype(x.dtype)
    if route == "direct":
        return _in_phases(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=_by_planes, cuda=_as_backward_input, rocm=_as_backward_input, default=_spread
    )


def _summed_over_repeats(kernel: jax.Array) -> jax.Array:
    """`[3, 3, 3, ...]` to `[4, 4, 4, ...]`: the kernel that meets each value once, with zeros between the values."""
    for axis in _SIDES:
        before, after = ([(int(a == axis), 0) if b else (0, int(a == axis)) for a in range(5)] for b in (True, False))
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


def _spread(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Zeros between the values, then the 4^3 kernel."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), ((2, 2),) * 3, lhs_dilation=(2, 2, 2), dimension_numbers=_NUMBERS
    )


def _as_backward_input(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_spread`, written so that XLA:GPU sees the gradient of a convolution with respect to its input.

    It looks for a reversed kernel, and without one it pads the input with zeros and multiplies all 64 taps.
    """
    return _spread(x, lax.rev(lax.optimization_barrier(lax.rev(kernel, _SIDES)), _SIDES))


def _in_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Even and odd outputs of each axis apart: eight convolutions with the 2^3 taps that meet values."""
    parts = []
    for phase in product((0, 1), repeat=3):
        taps = kernel[phase[0] :: 2, phase[1] :: 2, phase[2] :: 2]
        padding = tuple((1 - odd, odd) for odd in phase)
        parts.append(lax.conv_general_dilated(x, taps, (1, 1, 1), padding, dimension_numbers=_NUMBERS))
    batch, depth, height, width, channels = parts[0].shape
    y = jnp.stack(parts, axis=1).reshape(batch, 2, 2, 2, depth, height, width, channels)
    return y.transpose(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


def _by_planes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2D convolutions of size 2, whose channels hold the four phases within a plane; XLA:CPU is fast at these.

    The 2D result has one row and one column more than `x`: the phase (p, q) of voxel (h, w) is at (h + p, w + q).
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    batch, depth, height, width, channels = x.shape
    features = kernel.shape[-1]
    taps = kernel.reshape(4, 2, 2, 2, 2, channels, features).transpose(0, 1, 3, 5, 2, 4, 6)
    taps = taps.reshape(4, 2, 2, channels, 4 * features)
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    depths = []
    for p in (0, 1):
        total = 0.0
        for tap in (0, 1):
            planes = x[:, p + tap : p + tap + depth].reshape(batch * depth, height, width, channels)
            total += lax.conv_general_dilated(
                planes, taps[2 * tap + p], (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers
            )
        total = total.reshape(batch, depth, height + 1, width + 1, 2, 2, features)
        rows = [jnp.stack([total[:, :, q : q + height, r : r + width, q, r] for r in (0, 1)], axis=4) for q in (0, 1)]
        depths.append(jnp.stack(rows, axis=3))  # [B, D, H, 2, W, 2, C]
    return jnp.stack(depths, axis=2).reshape(batch, 2 * depth, 2 * height, 2 * width, features)
