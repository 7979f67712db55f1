"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import dataclasses
import math
import re

from brainldm.planning.hlo_text import array_sizes, computations, runs

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass
class Collective:
    """All operations of one kind in one run of a program on one device.

    bytes: size of their results. sent: bytes that leave the device with the usual ring algorithms.
    """

    kind: str
    count: int = 0
    bytes: float = 0.0
    sent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of a program, largest first, and whether it has loops (whose trips are counted)."""

    collectives: tuple[Collective, ...]
    loops: bool


def read_traffic(text: str, devices: int) -> Traffic:
    """The collectives of an HLO module in text form, on one of `devices`.

    What is inside a loop counts as often as the loop turns, see hlo_text.runs.
    """
    found, entry = computations(text)
    times, loops = runs(found, entry)
    sums = {kind: Collective(kind) for kind in KINDS}
    for name, instructions in found.items():
        if not times[name]:
            continue
        for instruction in instructions:
            kind = instruction.operation.removesuffix("-start")
            if kind not in sums:
                continue
            group = group_size(instruction.rest, devices)
            size = _result_bytes(instruction.shape, kind, instruction.operation != kind)
            item = sums[kind]
            item.count += times[name]
            item.bytes += times[name] * size
            item.sent += times[name] * size * _share_sent(kind, group)
    used = sorted((item for item in sums.values() if item.count), key=lambda item: -item.sent)
    return Traffic(tuple(used), loops)


def _share_sent(kind: str, group: int) -> float:
    """Bytes that a device sends, as a multiple of the result, in a ring of `group` devices."""
    part = (group - 1) / group
    return {
        "all-reduce": 2 * part,
        "all-gather": part,
        "all-to-all": part,
        "reduce-scatter": group - 1.0,  # its result is one of `group` parts
    }.get(kind, 1.0)


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in one group of a collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return found.group(1).count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found.group(2))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found.group(2))
        return math.prod(int(part) if part else sizes.get(name, 1) for name, part in axes)
    return devices


def _result_bytes(shape: str, kind: str, asynchronous: bool) -> float:
    sizes = array_sizes(shape)
    if asynchronous and kind in ("all-gather", "collective-permute", "all-to-all", "reduce-scatter"):
        sizes = [size for size in sizes if size > 8]  # without the numbers that identify the transfer
        return float(sum(sizes[len(sizes) // 2 :]))  # operands come before results
    return float(sum(sizes))
