"""Lines of metrics.jsonl: each ends with a checksum of itself, so that a changed bit is not taken for a measurement."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from brainldm.runtime.files import parse_line
from brainldm.runtime.rules import is_whole

_SUM = "crc32"
_END = re.compile(rf', "{_SUM}": "([0-9a-f]{{8}})"\}}$')


def metric_line(step: int, split: str, values: Mapping[str, float]) -> str:
    """A line with its end: {"step", "split", name: value, ..., "crc32"}, the CRC-32 of the object without it."""
    line = json.dumps({"step": step, "split": split, **values})
    return f'{line[:-1]}, "{_SUM}": "{zlib.crc32(line.encode()):08x}"}}\n'


def read_lines(lines: Sequence[str]) -> list[dict[str, Any] | None]:
    """What each line says, without its checksum; None for one that is damaged.

    A line of an earlier version has no checksum: it is damaged where it is no such object, or where its step does not
    fit those of the lines around it.
    """
    found = [_read(line) for line in lines]
    sealed = [_END.search(line) is not None for line in lines]
    before = 0
    for number, row in enumerate(found):
        if row is None:
            continue
        after = next((other["step"] for other in found[number + 1 :] if other is not None), row["step"])
        if not sealed[number] and (row["step"] < before or before <= after < row["step"]):
            found[number] = None
        else:
            before = row["step"]
    return found


def _read(line: str) -> dict[str, Any] | None:
    line = line.rstrip("\r\n")
    if end := _END.search(line):
        line = line[: end.start()] + "}"
        if f"{zlib.crc32(line.encode(errors='replace')):08x}" != end[1]:
            return None
    row = parse_line(line)
    values = [value for name, value in row.items() if name not in ("step", "split")]
    good = is_whole(row.get("step")) and row["step"] >= 0 and isinstance(row.get("split"), str)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return row if good and numbers else None
