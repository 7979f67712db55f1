"""Device meshes: batches split over the devices, everything else on each of them."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brainldm.errors import UserError


def data_mesh() -> Mesh:
    """All devices along one axis named "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError when a batch cannot be split evenly over the devices."""
    devices = mesh.shape["data"]
    if batch_size % devices:
        nearest = max(devices, round(batch_size / devices) * devices)
        raise UserError(
            f"config.batch_size {batch_size} cannot be split evenly over {devices} devices. "
            f"The nearest that works is {nearest}."
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays [B, ...] as device arrays, split over the first axis."""
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(batch_sharding(mesh), array), batch)
