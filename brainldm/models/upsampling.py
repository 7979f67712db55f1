"""Doubling each side by repetition and convolving, computed as one transposed convolution.

Along an axis each output voxel of a 3^3 convolution over repeated voxels sees two different voxels, not three: two taps
of the kernel meet the same one. Adding those taps up first leaves 8 of 27 multiplications, and the repeated array is
never made.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

from brainldm.models import convolution_cpu

_SIDES = (0, 1, 2)  # the spatial axes of a kernel
_convolve = partial(lax.conv_general_dilated, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


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
    small = x.size * kernel.size // x.shape[-1] < convolution_cpu.FEW
    return lax.platform_dependent(
        x, kernel, cpu=_spread if small else _on_cpu, cuda=_as_backward_input, rocm=_as_backward_input, default=_spread
    )


def _summed_over_repeats(kernel: jax.Array) -> jax.Array:
    """`[3, 3, 3, ...]` to `[4, 4, 4, ...]`: the kernel that meets each value once, with zeros between the values."""
    for axis in _SIDES:
        before, after = ([(int(a == axis), 0) if b else (0, int(a == axis)) for a in range(5)] for b in (True, False))
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


def _spread(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Zeros between the values, then the 4^3 kernel."""
    return _convolve(x, kernel, (1, 1, 1), ((2, 2),) * 3, lhs_dilation=(2, 2, 2))


def _as_backward_input(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_spread`, written so that XLA:GPU sees the gradient of a convolution with respect to its input.

    It looks for a reversed kernel, and without one it pads the input with zeros and multiplies all 64 taps.
    """
    return _spread(x, lax.rev(lax.optimization_barrier(lax.rev(kernel, _SIDES)), _SIDES))


def _in_phases(x: jax.Array, kernel: jax.Array, convolve: Callable = _convolve) -> jax.Array:
    """Even and odd outputs of each axis apart: eight convolutions with the 2^3 taps that meet values."""
    parts = []
    for phase in product((0, 1), repeat=3):
        taps = kernel[phase[0] :: 2, phase[1] :: 2, phase[2] :: 2]
        parts.append(convolve(x, taps, (1, 1, 1), tuple((1 - odd, odd) for odd in phase)))
    batch, depth, height, width, channels = parts[0].shape
    y = jnp.stack(parts, axis=1).reshape(batch, 2, 2, 2, depth, height, width, channels)
    return y.transpose(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


def _on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_in_phases` by the convolutions that are quick on a CPU."""
    return _in_phases(x, kernel, convolution_cpu.convolve)
