"""Brains to turn and to slice inside a page: niivue, which nilearn carries, and the volumes, all in the file itself.

Hanayik et al., niivue (BSD-2-Clause), https://github.com/niivue/niivue. A page opened from a disk cannot read files
beside it, hence the volumes as text. Nothing runs before a button is pressed.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import TypeVar

MOST_BYTES = 8 * 2**20
"""Of volumes in one page, as text."""
_T = TypeVar("_T")
_LIBRARY = ("nilearn", "_assets", "js", "niivue.umd.js")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A volume in a page: which list it stands in, its label there, and its file as base64."""

    group: str
    label: str
    data: str


@dataclasses.dataclass(frozen=True)
class Viewer:
    """What the template viewer.html needs: the library as it stands in a page, and the volumes."""

    library: str
    volumes: tuple[Shown, ...]

    @property
    def groups(self) -> dict[str, list[tuple[int, str]]]:
        """The lists: {group: [(number of the volume, label)]}."""
        found: dict[str, list[tuple[int, str]]] = {}
        for number, shown in enumerate(self.volumes):
            found.setdefault(shown.group, []).append((number, shown.label))
        return found


def make_viewer(volumes: Iterable[tuple[str, str, bytes]], most_bytes: int = MOST_BYTES) -> Viewer | None:
    """A viewer of (group, label, compressed NIfTI), as many from the front as fit into `most_bytes` as text.

    None where nilearn does not carry the library, or fewer than two volumes fit: a page then has its pictures alone.
    """
    library = niivue()
    if library is None:
        return None
    kept: list[Shown] = []
    size = 0
    for group, label, content in volumes:
        data = base64.b64encode(content).decode()
        size += len(data)
        if size > most_bytes:
            break
        kept.append(Shown(group, label, data))
    return Viewer(library, tuple(kept)) if len(kept) > 1 else None


def niivue() -> str | None:
    """The library's code, or None where nilearn does not carry it."""
    try:
        code = resources.files(_LIBRARY[0]).joinpath(*_LIBRARY[1:]).read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError):
        return None
    # Inside a page the text must not end its element.
    return code if "</script" not in code.lower() else None


def alternating(groups: Sequence[Sequence[_T]]) -> Iterator[_T]:
    """One of each group after the other, so that a bound cuts none of them off."""
    for place in range(max(map(len, groups), default=0)):
        for group in groups:
            if place < len(group):
                yield group[place]
