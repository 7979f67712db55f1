"""Which files are the same, without reading all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from brainldm.runtime.files import file_sha256
from brainldm.volumes.probe import Outside

Item = TypeVar("Item")


def groups(items: Iterable[Item], key: Callable[[Item], Hashable | None]) -> list[list[Item]]:
    """The items that share a key with another, group by group, in the order of first appearance. None never groups."""
    found: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        if (value := key(item)) is not None:
            found[value].append(item)
    return [group for group in found.values() if len(group) > 1]


def same_files(outsides: Mapping[str, Outside], known: Mapping[str, str] | None = None) -> list[list[str]]:
    """Groups of names whose files have the same content (or are one file under two names).

    Only files of one size with the same first and middle piece are hashed, and of these not the ones whose SHA-256 is
    `known`. A file that cannot be read is in no group.
    """
    known = known or {}
    hashes: dict[tuple[int, int], str | None] = {}

    def content(name: str) -> str | None:
        seen = outsides[name]
        if seen.identity not in hashes:
            hashes[seen.identity] = known.get(name) or file_sha256(seen.path)
        return hashes[seen.identity]

    def outside(name: str) -> tuple[int, bytes] | None:
        return (outsides[name].size, outsides[name].pieces) if outsides[name].size else None

    same = []
    for alike in groups(outsides, outside):
        one_file = len({outsides[name].identity for name in alike}) == 1
        same += [alike] if one_file else groups(alike, content)
    return same
