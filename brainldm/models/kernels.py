"""The kernels of a denoising network in the type that its computation reads them in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_UPSAMPLING = {"upsampler": ("conv1", "postconv")}
"""Convolutions that upsample, by the module that they are in: their kernels are summed before they are rounded."""


def cast_kernels(params: Any, dtype: jnp.dtype, inside: str = "") -> Any:
    """Parameters with those of convolutions and linear layers, which are those with a kernel, cast to `dtype`.

    The norms' stay as they are, and those of convolutions that upsample. `inside`: the name of the module of `params`.
    """
    if "kernel" in params:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return {
        name: cast_kernels(leaf, dtype, name)
        if isinstance(leaf, Mapping) and name not in _UPSAMPLING.get(inside, ())
        else leaf
        for name, leaf in params.items()
    }
