"""Which device holds which part of the training state: rules on the paths of its arrays.

A path is the way to an array in the state, as "params/encoder/blocks_1/conv1/kernel" or
"opt_state/1/0/mu/encoder/blocks_1/conv1/kernel". The first rule whose regular expression is found in it decides.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brainldm.parallel.mesh import batch_constraint, replicated
from brainldm.runtime.errors import UserError

Rule = tuple[str, str]

HOW = ("replicate", "fsdp")
"""What a rule can ask for: a copy on every device, or one part on each device along the mesh axis `fsdp`."""

PRESETS: dict[str, tuple[Rule, ...]] = {
    "replicate": (("", "replicate"),),
    # every array that is large enough (Zhao et al. 2023, arXiv 2304.11277)
    "fsdp": (("", "fsdp"),),
    # only what the optimizer keeps and the moving average (stage 1 of Rajbhandari et al. 2020, arXiv 1910.02054)
    "zero1": (("(^|_)opt_state/|^ema/", "fsdp"), ("", "replicate")),
}


def rules_of(text: str | Sequence[str]) -> tuple[Rule, ...]:
    """The rules that a config names: one of PRESETS, or "REGEX=HOW" as often as wanted, with spaces between them.

    A sequence of "REGEX=HOW" is understood as well. Raises UserError for an unknown preset, a way that does not exist,
    or a faulty expression.
    """
    items = text.split() if isinstance(text, str) else list(text)
    if len(items) == 1 and items[0] in PRESETS:
        return PRESETS[items[0]]
    if not items:
        raise UserError(f"config.mesh.rules is empty; it can be {', '.join(PRESETS)} or 'REGEX=HOW REGEX=HOW ...'.")
    rules = []
    for item in items:
        pattern, equals, how = item.rpartition("=")
        if not equals:
            near = difflib.get_close_matches(item, PRESETS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"config.mesh.rules: {item!r} is neither one of {', '.join(PRESETS)} (which stand alone) nor "
                f"'REGEX=HOW'.{hint}"
            )
        if how not in HOW:
            near = difflib.get_close_matches(how, HOW, 1) or HOW
            raise UserError(
                f"config.mesh.rules: in {item!r}, {how!r} can be {' or '.join(HOW)}. Did you mean {near[0]}?"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.mesh.rules: {pattern!r} is not a regular expression ({error}).") from error
        rules.append((pattern, how))
    return tuple(rules)


def state_shardings(shapes: Any, mesh: Mesh, rules: Sequence[Rule], min_size: int, strict: bool = True) -> Any:
    """A sharding for every leaf of `shapes` (arrays, or shapes of jax.eval_shape).

    With "fsdp" an array of at least `min_size` elements is cut along its last axis that the mesh axis `fsdp` divides
    (the outputs of a kernel); where there is none, and without a rule, it is replicated. Raises UserError for a rule
    that decides about nothing, unless not `strict`: for parts of a state, which some rules do not concern.
    """
    parts = mesh.shape["fsdp"]
    decided = [0] * len(rules)

    def place(path, leaf) -> NamedSharding:
        name = _name(path)
        for number, (pattern, how) in enumerate(rules):
            if re.search(pattern, name):
                decided[number] += 1
                return NamedSharding(mesh, _cut(leaf.shape, parts, min_size) if how == "fsdp" else P())
        return NamedSharding(mesh, P())

    shardings = jax.tree_util.tree_map_with_path(place, shapes)
    idle = [pattern for (pattern, _), count in zip(rules, decided, strict=True) if not count]
    if strict and idle:
        paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        near = difflib.get_close_matches(idle[0], paths, 1, cutoff=0.0)
        raise UserError(
            f"config.mesh.rules: {idle[0]!r} decides about none of the {len(paths)} arrays of the state (it matches "
            f"none, or rules before it took them all). The path nearest to it is {near[0]!r}."
        )
    return shardings


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _cut(shape: Sequence[int], parts: int, min_size: int) -> P:
    if parts == 1 or math.prod(shape) < min_size:
        return P()
    for axis in reversed(range(len(shape))):
        if shape[axis] % parts == 0:
            return P(*[None] * axis, "fsdp")
    return P()


def _same(x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of a training step lie: functions for use inside jit, which leave the values as they are.

    batch(array [B, ...]): split as a batch is. whole(params): gathered, for use. cut(gradients): as the optimizer's
    arrays for these parameters are cut. `num_devices` share the arrays. The default leaves everything to the compiler,
    which is right for one device.
    """

    batch: Callable[[jax.Array], jax.Array] = _same
    whole: Callable[[Any], Any] = _same
    cut: Callable[[Any], Any] = _same
    num_devices: int = 1


ANYWHERE = Placement()


def make_placement(mesh: Mesh, rules: Sequence[Rule], min_size: int) -> Placement:
    """The placement of a step whose state lies on `mesh` as `state_shardings` says."""
    if mesh.size == 1:
        return ANYWHERE

    def whole(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, replicated(mesh))

    def cut(gradients: Any) -> Any:
        shardings = state_shardings({"opt_state": gradients}, mesh, rules, min_size, strict=False)
        return jax.lax.with_sharding_constraint(gradients, shardings["opt_state"])

    return Placement(batch_constraint(mesh), whole, cut, mesh.size)
