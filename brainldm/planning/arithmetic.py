"""Floating-point operations of a function, counted in its jaxpr: what any machine has to do, whatever compiles it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def operations(function: Callable, *arguments: Any, platform: str = "tpu") -> float:
    """FLOPs of the convolutions and matrix products of `function(*arguments)`, on all devices together.

    `arguments` may be shapes. A multiplication and an addition are two operations; loops count as often as they turn
    and recomputation is counted; of the sides of a conditional the larger counts. Everything else (norms, activations,
    the optimizer) is not counted.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, platform)


def _count(jaxpr: Any, platform: str) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += parameters["length"] * _count(parameters["jaxpr"].jaxpr, platform)
        elif name == "cond":
            branches = parameters["branches"]
            chosen = _of_platform(parameters.get("branches_platforms"), platform)
            branches = branches if chosen is None else [branches[chosen]]
            total += max(_count(branch.jaxpr, platform) for branch in branches)
        else:
            total += sum(_count(inner, platform) for inner in _inner(parameters))
    return total


def _of_platform(platforms: Any, platform: str) -> int | None:
    """Which side of a `platform_dependent` is taken."""
    for index, names in enumerate(platforms or ()):
        if names is None or platform in names:
            return index
    return None


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: Any) -> float:
    """Taps that meet a value, not one of the zeros that a dilated (transposed) convolution puts between values."""
    parameters = equation.params
    kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"]
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # inputs of a group, and the window
    zeros = math.prod(parameters["lhs_dilation"])
    return 2.0 * taps / zeros * math.prod(equation.outvars[0].aval.shape)
