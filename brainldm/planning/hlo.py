"""What a compiled program sends between devices, read from its HLO text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")


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

    What is inside a loop counts as often as the loop turns (its trip count, or the constant that its condition
    compares with; 1 where neither is there). Both sides of a conditional count.
    """
    computations, entry = _computations(text)
    times, loops = _times(computations, entry)
    found = {kind: Collective(kind) for kind in KINDS}
    for name, lines in computations.items():
        if not times[name]:
            continue
        for shape, operation, rest in lines:
            kind = operation.removesuffix("-start")
            if kind not in found:
                continue
            group = group_size(rest, devices)
            size = _result_bytes(shape, kind, operation != kind)
            item = found[kind]
            item.count += times[name]
            item.bytes += times[name] * size
            item.sent += times[name] * size * _share_sent(kind, group)
    used = sorted((item for item in found.values() if item.count), key=lambda item: -item.sent)
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
    sizes = [_array_bytes(kind_, sides) for kind_, sides in _ARRAY.findall(_without_layouts(shape))]
    if asynchronous and kind in ("all-gather", "collective-permute", "all-to-all", "reduce-scatter"):
        sizes = [size for size in sizes if size > 8]  # without the numbers that identify the transfer
        return float(sum(sizes[len(sizes) // 2 :]))  # operands come before results
    return float(sum(sizes))


def _without_layouts(shape: str) -> str:
    return re.sub(r"\{[^}]*\}", "", shape)


def _array_bytes(kind: str, sides: str) -> float:
    bits = re.match(r"(?:bf|[fsu])(\d+)", kind)
    width = _BYTES.get(kind, int(bits.group(1)) / 8 if bits else 0)
    return width * math.prod(int(side) for side in sides.split(",") if side)


Lines = list[tuple[str, str, str]]  # (shape, operation, operands and attributes)


def _computations(text: str) -> tuple[dict[str, Lines], str]:
    computations: dict[str, Lines] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}"):
            header = _HEADER.match(line)
            current = header.group(2) if header else None
            if current:
                computations[current] = []
                entry = current if header.group(1) else entry
        elif current and (instruction := _INSTRUCTION.match(line)):
            body = instruction.group(1)
            if operation := _OPERATION.search(body):
                parts = body[: operation.start(1)], operation.group(1), body[operation.end() :]
                computations[current].append(parts)
    return computations, entry


def _times(computations: dict[str, Lines], entry: str) -> tuple[dict[str, int], bool]:
    """How often each computation runs, and whether there are loops."""
    times: dict[str, int] = defaultdict(int)
    loops = False

    def visit(name: str, factor: int) -> None:
        nonlocal loops
        times[name] += factor
        for _, operation, rest in computations.get(name, ()):
            trips = 1
            if operation == "while":
                loops, trips = True, _trips(rest, computations)
            for called in _called(rest):
                visit(called, factor * trips)

    visit(entry, 1)
    return times, loops


def _called(rest: str) -> Iterator[str]:
    yield from _CALLED.findall(rest)
    for names in _BRANCHES.findall(rest):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _trips(rest: str, computations: dict[str, Lines]) -> int:
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    constants = [
        int(operands.split(")")[0])
        for _, operation, operands in computations.get(condition.group(1) if condition else "", ())
        if operation == "constant" and operands.split(")")[0].isdigit()
    ]
    return constants[0] if len(constants) == 1 else 1
