"""Where the arrays of a run lie on its mesh: rules on the paths of the training state, and constraints inside a step.

A path is the way to an array in the state, as "params/encoder/blocks_1/conv1/kernel" or
"opt_state/1/0/mu/encoder/blocks_1/conv1/kernel". The first rule whose regular expression is found in it decides.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brainldm.parallel.mesh import batch_constraint, replicated
from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import shown

Rule = tuple[str, str]

HOW = ("replicate", "fsdp")
"""What a rule can ask for: a copy on every device, or one shard on each device along the mesh axis `fsdp`."""

PRESETS: dict[str, tuple[Rule, ...]] = {
    "replicate": (("", "replicate"),),
    # every array that is large enough (Zhao et al. 2023, arXiv 2304.11277)
    "fsdp": (("", "fsdp"),),
    # only what the optimizer keeps and the moving averages (stage 1 of Rajbhandari et al. 2020, arXiv 1910.02054)
    "zero1": (("(^|_)opt_state/|^ema/|^averages/", "fsdp"), ("", "replicate")),
}


def rules_of(rules: str | Sequence[str | Sequence[str]]) -> tuple[Rule, ...]:
    """The rules that a config names: one of PRESETS, or pairs (REGEX, HOW), of which the first that matches decides.

    A pair may also be written "REGEX=HOW"; a string holds as many of these as wanted, with spaces between them.
    Raises UserError for an unknown preset, a way that does not exist, or a faulty expression.
    """
    items = rules.split() if isinstance(rules, str) else list(rules)
    if len(items) == 1 and isinstance(items[0], str) and items[0] in PRESETS:
        return PRESETS[items[0]]
    if not items:
        raise UserError(
            f"config.mesh.rules is empty; it can be {', '.join(PRESETS)} or pairs (REGEX, HOW), which a command line "
            "writes as 'REGEX=HOW REGEX=HOW ...'."
        )
    return tuple(map(_rule, items))


def _rule(item: str | Sequence[str]) -> Rule:
    if isinstance(item, str):
        pattern, equals, how = item.rpartition("=")
        if not equals:
            near = difflib.get_close_matches(item, PRESETS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"config.mesh.rules: {shown(item)} is neither one of {', '.join(PRESETS)} (which stand alone) nor "
                f"'REGEX=HOW'.{hint}"
            )
    elif len(item) == 2 and all(isinstance(part, str) for part in item):
        pattern, how = item
    else:
        raise UserError(f"config.mesh.rules: {shown(item)} is not a pair (REGEX, HOW) of two strings.")
    if how not in HOW:
        near = difflib.get_close_matches(how, HOW, 1) or HOW
        raise UserError(
            f"config.mesh.rules: in {shown(item)}, {shown(how)} can be {' or '.join(HOW)}. Did you mean {near[0]}?"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"config.mesh.rules: {shown(pattern)} is not a regular expression ({error}).") from error
    return pattern, how


def state_shardings(shapes: Any, mesh: Mesh, rules: Sequence[Rule], min_size: int, strict: bool = True) -> Any:
    """A sharding for every leaf of `shapes` (arrays, or shapes of jax.eval_shape).

    With "fsdp" an array of at least `min_size` elements is split along its last axis that the mesh axis `fsdp` divides
    (the outputs of a kernel); where there is none, and without a rule, it is replicated. Raises UserError for a rule
    that decides about nothing, unless not `strict`: for parts of a state, which some rules do not concern.
    """
    shards = mesh.shape["fsdp"]
    decided = [0] * len(rules)

    def sharding(path, leaf) -> NamedSharding:
        name = _name(path)
        for number, (pattern, how) in enumerate(rules):
            if re.search(pattern, name):
                decided[number] += 1
                return NamedSharding(mesh, _split(leaf.shape, shards, min_size) if how == "fsdp" else P())
        return NamedSharding(mesh, P())

    shardings = jax.tree_util.tree_map_with_path(sharding, shapes)
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


def _split(shape: Sequence[int], shards: int, min_size: int) -> P:
    if shards == 1 or math.prod(shape) < min_size:
        return P()
    for axis in reversed(range(len(shape))):
        if shape[axis] % shards == 0:
            return P(*[None] * axis, "fsdp")
    return P()


class Sharding:
    """Where the arrays of a run lie on `mesh`, as `options` (config.mesh) says; the rules are read once.

    The methods for use inside jit leave values as they are. On one device, or without a mesh, they do nothing at all.
    Raises UserError for rules that cannot be understood.
    """

    def __init__(self, options: ml_collections.ConfigDict, mesh: Mesh | None = None):
        self.mesh = mesh
        self._rules, self._min_size = rules_of(options.rules), options.min_size
        self.num_devices = 1 if mesh is None else mesh.size
        self._alone = self.num_devices == 1

    def state(self, shapes: Any) -> Any:
        """A sharding for every array of a training state. Raises UserError for a rule that decides about none."""
        return state_shardings(shapes, self.mesh, self._rules, self._min_size)

    def params(self, shapes: Any) -> Any:
        """A sharding for every array of parameters that are not trained."""
        return state_shardings({"params": shapes}, self.mesh, self._rules, self._min_size, strict=False)["params"]

    def put_params(self, params: Any) -> Any:
        """Parameters that are not trained, from the host to their devices."""
        params = jax.tree.map(np.asarray, params)
        return jax.device_put(params, self.params(params))

    def gather_params(self, params: Any) -> Any:
        """Inside jit: parameters, whole on every device, for use."""
        return params if self._alone else jax.lax.with_sharding_constraint(params, replicated(self.mesh))

    def shard_grads(self, gradients: Any) -> Any:
        """Inside jit: gradients, split as the optimizer's arrays for these parameters are."""
        if self._alone:
            return gradients
        shardings = state_shardings({"opt_state": gradients}, self.mesh, self._rules, self._min_size, strict=False)
        return jax.lax.with_sharding_constraint(gradients, shardings["opt_state"])

    def constrain_batch(self, array: jax.Array) -> jax.Array:
        """Inside jit: an array [B, ...], split over the batch (and volumes in space), as a batch is."""
        return array if self._alone else batch_constraint(self.mesh)(array)

    def value_and_grad(self, loss: Callable, has_aux: bool = False) -> Callable:
        """jax.value_and_grad of loss(params, ...), which gets its parameters whole; the gradients come sharded."""

        def of_whole_params(params: Any, *arguments: Any) -> Any:
            return loss(self.gather_params(params), *arguments)

        def function(params: Any, *arguments: Any) -> Any:
            value, gradients = jax.value_and_grad(of_whole_params, has_aux=has_aux)(params, *arguments)
            return value, self.shard_grads(gradients)

        return function


def abstract_like(state: Any, sharding: jax.sharding.Sharding | Any) -> Any:
    """Shapes and types of `state` (arrays or shapes), that lie as `sharding` says: one for all, or a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, state)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, sharding)
