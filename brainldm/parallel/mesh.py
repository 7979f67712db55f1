"""Device meshes, and where arrays lie on them.

A mesh has four axes. `data` and `fsdp` split a batch (`fsdp` also parameters, see rules.py); `space` and `space_y`
split the first and the second side of a volume. The last axes vary fastest, so that neighbours in space are neighbours
in the machine.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brainldm.runtime.errors import UserError

AXES = ("data", "fsdp", "space", "space_y")

BATCH = P(("data", "fsdp"))
"""Arrays [B, ...] split over the batch."""

VOLUMES = P(("data", "fsdp"), "space", "space_y")
"""Volumes [B, D, H, W, C] split over the batch, the first side and the second."""


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All `devices` (default: every device of the run) as a mesh of AXES.

    `sizes` gives the number of devices along an axis: at least 1 (which an axis left out has), or -1 for one axis that
    takes the rest; without `sizes` that is `data`. Processes follow each other in the order of a batch.
    Raises UserError for an unknown axis and for sizes that do not fit the devices or the processes.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(sizes, len(devices))
    mesh = _mesh((_on_torus if devices[0].platform == "tpu" else _by_process)(shape, devices))
    for process in {device.process_index for device in devices}:
        process_shard(mesh, process)
    return mesh


def _by_process(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of a process as a block that is as long as can be along the last axes."""
    processes = len({device.process_index for device in devices})
    left, local = len(devices) // processes, []
    for size in reversed(shape):
        local.insert(0, math.gcd(size, left))
        left //= local[0]
    outer = [size // part for size, part in zip(shape, local, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        local, outer, devices, process_is_granule=True, allow_split_physical_axes=True
    )


def _on_torus(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Axes along the links of a TPU slice. Blocks by process would not be: collectives over them do not even compile
    on the larger slices. Only along `data`, where any order will do, those of a process are brought together."""
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    first = [min(device.process_index for device in block.flat) for block in arranged]
    return arranged[np.argsort(first, kind="stable")]


def mesh_shape(sizes: Mapping[str, int] | None, count: int) -> tuple[int, int, int, int]:
    """The sizes of AXES for `count` devices, with -1 and absent axes filled in. Raises UserError as `make_mesh`."""
    sizes = dict(sizes or {"data": -1})
    for name in sizes:
        if name not in AXES:
            near = difflib.get_close_matches(name, AXES, 1) or AXES
            raise UserError(f"config.mesh.{name}: no such axis. Did you mean {near[0]}? All: {', '.join(AXES)}.")
    shape = [sizes.get(name, 1) for name in AXES]
    written = ", ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh ({written}): sizes are at least 1, and one axis may be -1, which takes the rest.")
    given = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        if count % given:
            raise UserError(
                f"config.mesh ({written}): the sizes given multiply to {given}, which does not divide the {count} "
                f"devices of this run. {nearest_divisor(given, count)} would."
            )
        shape[shape.index(-1)] = count // given
    elif given != count:
        raise UserError(
            f"config.mesh ({written}) takes {given} devices, and this run has {count}. {_fitting(shape, count)}"
        )
    return tuple(shape)


def _fitting(shape: Sequence[int], count: int) -> str:
    """The change of one axis that makes the sizes fit, or else the nearest number of devices."""
    for axis, size in zip(AXES, shape, strict=True):
        others = math.prod(shape) // size
        if count % others == 0:
            return f"config.mesh.{axis}={count // others} would fit (or -1: what the other axes leave)."
    return f"Sizes that multiply to {count} would fit, for example config.mesh.data={count} and 1 for the others."


def data_only_mesh(mesh: Mesh) -> Mesh:
    """The same devices in the same order, those along space moved to `data`.

    For networks on latents, which are too small to split. One program can use arrays on both meshes.
    """
    fsdp = mesh.shape["fsdp"]
    return _mesh(mesh.devices.reshape(mesh.size // fsdp, fsdp, 1, 1))


def _mesh(devices: np.ndarray) -> Mesh:
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, P())


def batch_constraint(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A function for use inside jit that keeps an array [B, ...] split as `shard_batch` would place it."""

    def constrain(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec(x.ndim)))

    return constrain


def _spec(ndim: int) -> P:
    return VOLUMES if ndim == 5 else BATCH


def num_batch_shards(mesh: Mesh) -> int:
    """Over how many shards a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def process_shard(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which part of each batch a process (default: this one) reads: (number, of how many).

    Processes that hold shards of the same volumes have the same number. Raises UserError when the rows of a process do
    not follow each other in the batch.
    """
    process = jax.process_index() if process is None else process
    shards = num_batch_shards(mesh)
    own = [any(d.process_index == process for d in block.flat) for block in mesh.devices.reshape(shards, -1)]
    start, length = own.index(True), sum(own)
    if not all(own[start : start + length]) or start % length:
        devices = sum(d.process_index == process for d in mesh.devices.flat)
        fsdp = mesh.shape["fsdp"]
        raise UserError(
            f"config.mesh.fsdp is {fsdp}, and each process has {devices} devices: the batch cannot be shared out among "
            f"the processes. {nearest_divisor(fsdp, devices)} would work."
        )
    return start // length, shards // length


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError when a batch cannot be split evenly over the mesh."""
    shards = num_batch_shards(mesh)
    if batch_size % shards:
        nearest = max(shards, round(batch_size / shards) * shards)
        raise UserError(
            f"config.batch_size {batch_size} (of a microbatch, with config.accumulation_steps) cannot be split evenly "
            f"over {shards} devices (config.mesh data x fsdp). The nearest that works is {nearest}; or let devices "
            "share volumes, by config.mesh.space."
        )


def check_volume(shape: Sequence[int], halvings: int, mesh: Mesh) -> None:
    """Raise UserError when volumes of `shape`, halved `halvings` times, cannot be split evenly at every level."""
    for axis, side in zip(("space", "space_y"), shape, strict=False):
        shards, deepest = mesh.shape[axis], side // 2**halvings
        if deepest % shards:
            raise UserError(
                f"config.mesh.{axis} is {shards}, but a side of {side} voxels is {deepest} at the deepest of the "
                f"{halvings + 1} levels, which {shards} does not divide. {nearest_divisor(shards, deepest)} would."
            )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch, host arrays [B / count, ...] (see `process_shard`), as global arrays [B, ...].

    Arrays of five axes are volumes, which are also split in space.
    """
    _, count = process_shard(mesh)

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        shape = (array.shape[0] * count, *array.shape[1:])
        return jax.make_array_from_process_local_data(NamedSharding(mesh, _spec(array.ndim)), array, shape)

    return jax.tree.map(put, batch)


def nearest_divisor(wanted: int, number: int) -> int:
    """The divisor of `number` nearest to `wanted`, the smaller of two."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), d))
