"""The record of what is written: one line for each brain, appended after its file is on disk.

A file without its line is not done, whatever it looks like, and a line whose file is gone or of another length is not
either. So a run that was killed at any moment loses at most the brains that it was writing.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brainldm.datasets.scans import is_scan_name
from brainldm.generation import archive
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256, open_regular, parse_line, read_json, write_atomically
from brainldm.runtime.rules import BOOL, COUNT, TEXT, Rule, number, whole
from brainldm.runtime.shards import Shard
from brainldm.volumes.nifti import Volume, read_volume

Entry = Mapping[str, Any]
"""A line: id, index, seed, noise, batch_size, conditions, extrapolated, file, bytes, sha256, mean, p99, model_sha256.
Of a brain in a tar also its place there (see archive.py); `file` is the member's name then.

`noise` is the number that the key is folded from; `mean` and `p99` (99th percentile) are of the intensities, 0 to 1.
"""
_LOOKING = 4
"""Threads that look at files."""
_AT_ONCE = 64
"""Files that one of them looks at in a turn."""
_RULES = {
    "id": Rule("a BIDS id", lambda v: isinstance(v, str) and is_scan_name(v)),
    "index": COUNT,
    "file": Rule("a path inside", lambda v: isinstance(v, str) and v.startswith("sub-") and ".." not in v),
    "bytes": whole(0),
    "sha256": TEXT,
    "conditions": Rule("a table", lambda v: isinstance(v, dict)),
    "extrapolated": BOOL,
    "mean": number(),
    "p99": number(),
}
"""What a line has to hold to be one of ours: the rest of a damaged one is not looked at."""


def manifest_path(out: Path, shard: Shard) -> Path:
    """The manifest that one shard writes."""
    return out / f"manifest-{shard[0] - 1:04d}.jsonl"


def completion_path(out: Path, shard: Shard) -> Path:
    """The file that says that a shard is done, for whatever waits for it."""
    return out / f"shard-{shard[0]:04d}-of-{shard[1]:04d}.json"


def shard_is_done(out: Path, shard: Shard) -> bool:
    """Whether a shard says that it is done, and of the manifest that is there."""
    try:
        said = read_json(completion_path(out, shard))
    except UserError:
        return False
    return said.get("manifest_sha256") == file_sha256(manifest_path(out, shard))


def read_manifest(path: Path) -> Iterator[Entry]:
    """The lines of a manifest that can be read; one that a killed run was writing is left out."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        for line in io.TextIOWrapper(file, encoding="utf-8", errors="replace"):
            entry = parse_line(line)
            rules = _RULES | archive.PLACE_RULES if "archive" in entry else _RULES
            if all(name in entry and rule.allows(entry[name]) for name, rule in rules.items()):
                yield _shared(entry)


def _shared(entry: Entry) -> Entry:
    """The same, without a copy of its own of what all lines have: half of the memory, of many."""
    entry = {sys.intern(name): value for name, value in entry.items()}
    entry["conditions"] = {sys.intern(name): value for name, value in entry["conditions"].items()}
    for name in ("model_sha256", "archive"):
        if isinstance(entry.get(name), str):
            entry[name] = sys.intern(entry[name])
    return entry


def read_manifests(out: Path) -> Iterator[Entry]:
    """The lines of all manifests of a folder."""
    for path in sorted(out.glob("manifest-*.jsonl")):
        yield from read_manifest(path)


def line(entry: Entry) -> bytes:
    """An entry as the manifest has it."""
    return (json.dumps(entry) + "\n").encode()


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write a manifest anew, whole or not at all."""
    write_atomically(path, map(line, entries))


def problem(out: Path, entry: Entry, full: bool = False) -> str | None:
    """What is wrong with the file of an entry: "missing", "of another length", "cannot be read" or, with `full`,
    "changed" by its SHA-256; None when nothing is."""
    if "archive" in entry:
        return archive.problem(out, entry, full)
    path = out / entry["file"]
    try:
        if os.stat(path).st_size != entry["bytes"]:
            return "of another length"
    except OSError:
        return "missing"
    if not full:
        return None
    found = file_sha256(path)
    return "cannot be read" if found is None else None if found == entry["sha256"] else "changed"


def read_brain(out: Path, entry: Entry) -> Volume:
    """The image of an entry. Raises UserError where it cannot be read."""
    path = out / entry["file"]
    return read_volume(path, content=archive.image_content(out, entry) if "archive" in entry else None)


def find_problems(out: Path, entries: Sequence[Entry], full: bool) -> dict[str, str]:
    """What is wrong with the files of entries, by id (see `problem`)."""

    def look(start: int) -> list[tuple[str, str]]:
        some = entries[start : start + _AT_ONCE]
        return [(entry["id"], what) for entry in some if (what := problem(out, entry, full))]

    with ThreadPoolExecutor(_LOOKING) as pool:  # a task for each would take more memory than the entries
        return dict(itertools.chain.from_iterable(pool.map(look, range(0, len(entries), _AT_ONCE))))
