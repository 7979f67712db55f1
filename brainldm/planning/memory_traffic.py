"""What a compiled program moves to and from the memory of a device, counted in its HLO text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from brainldm.planning.hlo_text import Computations, Instruction, computations, runs, stored_sizes

_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"),
    *("opt-barrier", "partition-id", "replica-id"),
}
_SLICES = ("slice", "dynamic-slice", "gather")
_PRODUCTS = ("convolution", "dot")
_CUDNN = "__cudnn$conv"
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class MemoryTraffic:
    """What one run of a program moves, in bytes on one device.

    bytes: read and written by all scheduled instructions. largest_convolution: the operands and the result of the
    largest convolution that a library computes (0 without). product_cycles: the compiler's estimate for convolutions
    and matrix products, where it gives one (TPUs). other_bytes: of `bytes`, what instructions without that estimate
    move.
    """

    bytes: float
    largest_convolution: float
    product_cycles: float
    other_bytes: float


def memory_traffic(text: str) -> MemoryTraffic:
    """Count the operands and results of every scheduled instruction of an HLO module in text form.

    A fusion is one instruction. Of an operand that is only sliced the slices count, and of an array that is updated in
    place the update; trips of loops are counted. Nothing is known of caches, so small arrays that stay in one count
    too.
    """
    found, entry = computations(text)
    times, _ = runs(found, entry, inside=False)
    total = cycles = other = largest = 0.0
    for name, count in times.items():
        shapes = {instruction.name: instruction.shape for instruction in found.get(name, ())}
        for instruction in found.get(name, ()):
            moved = count * _moved(instruction, shapes, found)
            total += moved
            estimate = _CYCLES.search(instruction.rest)
            if estimate and _has_product(instruction, found):
                cycles += count * int(estimate.group(1))
            else:
                other += moved
            if instruction.operation == "custom-call" and _CUDNN in instruction.rest:
                largest = max(largest, moved / count)
    return MemoryTraffic(total, largest, cycles, other)


def _moved(instruction: Instruction, shapes: dict[str, str], found: Computations) -> float:
    operation = instruction.operation
    if operation in _FREE or operation.endswith(("-done", "-update")) or operation == "async-start":
        return 0.0
    result = stored_sizes(instruction.shape)
    operands = [sum(stored_sizes(shapes.get(name, ""))) for name in instruction.operands]
    if operation in _SLICES:
        return 2 * sum(result)
    if operation == "dynamic-update-slice":
        return 2 * operands[1]
    if operation == "fusion":
        return _fused(operands, sum(result), found.get(next(iter(instruction.called), ""), []))
    if operation.endswith("-start") and not operation.startswith("all-reduce"):
        return sum(result)  # which names the operands again
    if operation == "custom-call" and len(result) > 1:
        result = result[:-1]  # the last is room to work in
    return sum(operands) + sum(result)


def _fused(operands: list[float], result: float, inside: list[Instruction]) -> float:
    """Bytes of a fusion: of an operand that is only sliced the slices, of one that is updated in place the update."""
    shapes = {instruction.name: instruction.shape for instruction in inside}
    total = result
    for parameter in (item for item in inside if item.operation == "parameter"):
        whole = operands[int(parameter.rest.split(")")[0])]
        users = list(_users(parameter.name, inside))
        if users and all(first and user.operation in _SLICES for user, first in users):
            total += min(whole, sum(sum(stored_sizes(user.shape)) for user, _ in users))
        elif [(user.operation, first) for user, first in users] == [("dynamic-update-slice", True)]:
            total += 2 * sum(stored_sizes(shapes[users[0][0].operands[1]])) - whole
        else:
            total += whole
    return max(total, 0.0)


def _users(name: str, inside: list[Instruction]) -> Iterator[tuple[Instruction, bool]]:
    """The instructions that read an array, also by another name, and whether it is their first operand."""
    for instruction in inside:
        if name in instruction.operands:
            if instruction.operation == "bitcast":
                yield from _users(instruction.name, inside)
            else:
                yield instruction, instruction.operands[0] == name


def _has_product(instruction: Instruction, found: Computations) -> bool:
    if instruction.operation in _PRODUCTS:
        return True
    return instruction.operation == "fusion" and any(
        _has_product(inner, found) for called in instruction.called for inner in found.get(called, ())
    )
