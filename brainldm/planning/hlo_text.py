"""Compiled programs in text form (HLO): computations, instructions, how often each runs, sizes of arrays."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its result's shape as written, the operation, and the operands and attributes."""

    name: str
    shape: str
    operation: str
    rest: str
    root: bool = False

    @property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        depth = 1
        for end, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return _NAME.findall(self.rest[:end])
        return _NAME.findall(self.rest)

    @property
    def called(self) -> Iterator[str]:
        """Names of the computations that it runs or applies."""
        yield from _CALLED.findall(self.rest)
        for names in _BRANCHES.findall(self.rest):
            yield from (name.strip().lstrip("%") for name in names.split(","))


Computations = dict[str, list[Instruction]]


def computations(text: str) -> tuple[Computations, str]:
    """The computations of a module by name, and the name of the one that the program enters at."""
    found: Computations = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}"):
            header = _HEADER.match(line)
            current = header.group(2) if header else None
            if current:
                found[current] = []
                entry = current if header.group(1) else entry
        elif current and (match := _INSTRUCTION.match(line)):
            root, name, body = match.groups()
            if operation := _OPERATION.search(body):
                shape, rest = body[: operation.start(1)], body[operation.end() :]
                found[current].append(Instruction(name, shape, operation.group(1), rest, bool(root)))
    return found, entry


def runs(found: Computations, entry: str, inside: bool = True) -> tuple[dict[str, int], bool]:
    """How often each computation runs in one run of the program, and whether there are loops.

    A loop's body counts as often as the loop turns (its trip count, or the constant that its condition compares with;
    1 where neither is there); both sides of a conditional count. Without `inside`, what runs within one instruction
    (the computation of a fusion, the function of a reduction) counts zero.
    """
    times: dict[str, int] = defaultdict(int)
    loops = False

    def visit(name: str, factor: int) -> None:
        nonlocal loops
        times[name] += factor
        for instruction in found.get(name, ()):
            trips = 1
            if instruction.operation == "while":
                loops, trips = True, _trips(instruction, found)
            elif not inside and instruction.operation not in ("conditional", "call", "async-start"):
                continue
            for called in instruction.called:
                visit(called, factor * trips)

    visit(entry, 1)
    return times, loops


def _trips(loop: Instruction, found: Computations) -> int:
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    constants = [
        int(instruction.rest.split(")")[0])
        for instruction in found.get(condition.group(1) if condition else "", ())
        if instruction.operation == "constant" and instruction.rest.split(")")[0].isdigit()
    ]
    return constants[0] if len(constants) == 1 else 1


def array_sizes(shape: str) -> list[float]:
    """Bytes of the arrays in a shape as written, without the padding of their layouts."""
    return [_width(kind) * math.prod(_sides(sides)) for kind, sides, _ in _ARRAY.findall(shape)]


def stored_sizes(shape: str) -> list[float]:
    """Bytes that the arrays of a shape take in the device's main memory.

    A TPU stores tiles, most often of 8 x 128 elements, and pads the two innermost sides to whole ones. Arrays that the
    layout puts elsewhere, as into the memory on the chip, take none.
    """
    return [_stored(*array) for array in _ARRAY.findall(shape)]


def _stored(kind: str, sides: str, layout: str) -> float:
    if re.search(r"S\([1-9]", layout):
        return 0.0
    lengths = _sides(sides)
    order, _, tiles = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if tile and lengths:
        innermost = [int(axis) for axis in order.split(",")]
        for axis, side in zip(innermost, reversed(_sides(tile.group(1))), strict=False):
            lengths[axis] = -(-lengths[axis] // side) * side
    return _width(kind) * math.prod(lengths)


def _sides(text: str) -> list[int]:
    return [int(side) for side in text.split(",") if side]


def _width(kind: str) -> float:
    bits = re.match(r"(?:bf|[fsu])(\d+)", kind)
    return _WIDTHS.get(kind, int(bits.group(1)) / 8 if bits else 0)
