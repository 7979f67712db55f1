"""What a plan is made for, from what was asked."""

from __future__ import annotations

from brainldm.planning.chips import SLICES, Chip, find_chip, parse_topology
from brainldm.planning.compiler import Target
from brainldm.planning.gpus import PER_HOST, Gpus
from brainldm.runtime.errors import UserError

MOST = 4096
"""Devices at most."""


def find_target(topology: str | None, chip: str | None, devices: int | None) -> tuple[Target, Chip | None]:
    """The target that a topology, a chip or a number of devices names, and the chip that it is held against.

    A chip alone stands for one of it; devices alone for that many virtual ones. Raises UserError for what there is not.
    """
    if devices is not None and not 1 <= devices <= MOST:
        raise UserError(f"--devices {devices}: a number from 1 to {MOST} is wanted.")
    if topology:
        if chip or devices:
            raise UserError("--chip goes with --devices: a topology names its chip and how many.")
        target = parse_topology(topology)
        return target, target.chip
    if not chip:
        if devices is None:
            raise UserError("Name what to plan for: --topology v5e:2x4, --chip h100 --devices 8, or --devices 8.")
        return devices, None
    found, count = find_chip(chip), devices or 1
    if found.name in SLICES:
        target = parse_topology(f"{found.name}-{2 * count if found.name == 'v5p' else count}")
        return target, found
    if count > PER_HOST and count % PER_HOST:
        raise UserError(
            f"--devices {count}: above {PER_HOST} GPUs, a multiple of {PER_HOST} is wanted, whole machines."
        )
    return Gpus(found, count), found
