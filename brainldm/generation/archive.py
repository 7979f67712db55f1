"""The brains of a shard in one tar in place of loose files, for clusters that count these.

A brain is two members with one key, as WebDataset has it: the image under its path of BIDS, and a JSON file beside it
with its conditions. Unpacked, the tars are the dataset of loose files. An entry of the manifest says where in the tar
its brain is: both members are `begin` to `end`, the image's bytes begin at `offset`, and `span_sha256` is of both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import open_regular
from brainldm.runtime.rules import TEXT, Rule, whole
from brainldm.runtime.shards import Shard

KINDS = ("tar",)
"""Kinds of archives that brains can be put into."""
PATTERN = "brains-*.tar"
_NAME_BYTES = 100
"""Of a name, what a header holds: longer ones are whole in an extended header before it."""
_END = bytes(2 * tarfile.BLOCKSIZE)

PLACE_RULES = {
    "archive": Rule("the name of a tar", lambda v: isinstance(v, str) and Path(v).match(PATTERN) and "/" not in v),
    "begin": whole(0),
    "offset": whole(tarfile.BLOCKSIZE),
    "end": whole(0),
    "span_sha256": TEXT,
}
"""What an entry says of a brain in a tar."""


def archive_path(out: Path, shard: Shard) -> Path:
    """The tar that one shard writes."""
    return out / f"brains-{shard[0] - 1:04d}.tar"


def member(name: str, content: bytes) -> tuple[bytes, int]:
    """A member of a tar, whole blocks that depend on the arguments alone, and how long its header is."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    header = info.tobuf(tarfile.PAX_FORMAT)
    return header + content + bytes(-len(content) % tarfile.BLOCKSIZE), len(header)


def pack(entry: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """The members of a brain, and its entry with their place in a tar that they begin."""
    image, offset = member(entry["file"], content)
    said = {name: entry[name] for name in ("id", "index", "conditions", "extrapolated")}
    sidecar, _ = member(entry["file"].removesuffix(".nii.gz") + ".json", (json.dumps(said) + "\n").encode())
    span = image + sidecar
    place = {"begin": 0, "offset": offset, "end": len(span), "span_sha256": hashlib.sha256(span).hexdigest()}
    return {**entry, **place}, span


def append(file: BinaryIO, packed: Iterable[tuple[Mapping[str, Any], bytes]]) -> list[dict[str, Any]]:
    """Write packed brains at the end of an open, unbuffered tar, on disk when this returns; their entries."""
    name, entries = Path(file.name).name, []
    for entry, span in packed:
        entries.append({**_moved(entry, file.tell()), "archive": name})
        rest = memoryview(span)
        while rest:
            rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
    return entries


def _moved(entry: Mapping[str, Any], to: int) -> dict[str, Any]:
    """The entry of a brain that begins at `to`."""
    by = to - entry["begin"]
    return {**entry, **{name: entry[name] + by for name in ("begin", "offset", "end")}}


def open_to_append(path: Path, entries: Sequence[Mapping[str, Any]]) -> BinaryIO:
    """A tar open after its `entries`, without what a killed run was writing and without its end."""
    path.touch()
    file = open(path, "r+b", buffering=0)
    file.truncate(_end_of(entries))
    file.seek(0, os.SEEK_END)
    return file


def tidy(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make a tar hold the brains of `entries` in their order without gaps; their entries.

    Left alone where it does already. Else it is written anew beside itself and renamed. A kill between that and
    the writing of the manifest is harmless: where a brain's header is not in the place that the manifest says,
    `problem` calls it missing.
    """
    places = [0, *(entry["end"] for entry in entries)]
    if all(entry["begin"] == place for entry, place in zip(entries, places, strict=False)):
        return list(map(dict, entries))
    moved = []
    temporary = path.with_name(f".{path.name}.tidy.tmp")
    with open(path, "rb") as before, open(temporary, "wb") as after:
        for entry in entries:
            moved.append(_moved(entry, after.tell()))
            before.seek(entry["begin"])
            shutil.copyfileobj(_Part(before, entry["end"] - entry["begin"]), after)
        after.flush()
        os.fsync(after.fileno())
    os.replace(temporary, path)
    return moved


class _Part:
    """The next `left` bytes of a file."""

    def __init__(self, file: BinaryIO, left: int):
        self._file, self._left = file, left

    def read(self, size: int) -> bytes:
        content = self._file.read(min(size, self._left))
        self._left -= len(content)
        return content


def close_archive(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the end of a tar after its `entries`, unless it has it."""
    if _size(path) == _end_of(entries) + len(_END):
        return
    with open_to_append(path, entries) as file:
        file.write(_END)
        os.fsync(file.fileno())


def write_archive(path: Path, files: Iterable[tuple[str, bytes]]) -> str:
    """Write a whole tar of `files`, by their names, and return its SHA-256."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.whole.tmp")
    with open(temporary, "wb") as file:
        for part in (*(member(name, content)[0] for name, content in files), _END):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return digest.hexdigest()


def problem(out: Path, entry: Mapping[str, Any], full: bool) -> str | None:
    """What `manifest.problem` says of a brain in a tar; with `full` every byte of its two members counts."""
    try:
        with open_regular(out / entry["archive"]) as file:
            if os.fstat(file.fileno()).st_size < entry["end"]:
                return "missing"
            header = os.pread(file.fileno(), _NAME_BYTES, entry["offset"] - tarfile.BLOCKSIZE)
            if header.rstrip(b"\0") != entry["file"].encode()[:_NAME_BYTES]:
                return "missing"
            span = os.pread(file.fileno(), entry["end"] - entry["begin"], entry["begin"]) if full else None
    except FileNotFoundError:
        return "missing"
    except (OSError, UserError):
        return "cannot be read"
    return "changed" if span is not None and hashlib.sha256(span).hexdigest() != entry["span_sha256"] else None


def image_content(out: Path, entry: Mapping[str, Any]) -> bytes:
    """The bytes of the image of a brain in a tar. Raises UserError where they are not there."""
    path = out / entry["archive"]
    try:
        with open_regular(path) as file:
            content = os.pread(file.fileno(), entry["bytes"], entry["offset"])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    if len(content) < entry["bytes"]:
        raise UserError(f"{path}: ends before {entry['id']}, which its manifest says it has. Copy it again.")
    return content


def strange_archives(out: Path, entries: Iterable[Mapping[str, Any]], closed: bool) -> dict[str, str]:
    """What is wrong with the tars of a folder besides their brains, by name; `closed` ones have an end."""
    ends: dict[str, int] = {}
    for entry in entries:
        ends[entry["archive"]] = max(ends.get(entry["archive"], 0), entry["end"])
    wrong = {path.name: "in no manifest" for path in out.glob(PATTERN) if path.name not in ends}
    if closed:
        there = {name: _size(out / name) for name in ends}
        wrong |= {name: "of another length" for name, end in ends.items() if there[name] not in (None, end + len(_END))}
    return wrong


def _end_of(entries: Sequence[Mapping[str, Any]]) -> int:
    return max((entry["end"] for entry in entries), default=0)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
