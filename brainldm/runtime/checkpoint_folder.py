"""The folder of a run's checkpoints: which steps are in it, whether they are whole, and which of them stay.

checkpoints/
  1000/             a finished step: what Orbax wrote, and SHA256SUMS of all of it (the format of sha256sum)
  2000.unfinished/  a step being written, or what a kill left of one
  3000.damaged/     a step that did not agree with its SHA256SUMS, put aside when a run fell back to the one before

A step gets its bare number in one rename, after Orbax has committed it and its SHA256SUMS are on disk. So a folder with
a bare number and without SHA256SUMS has lost a file: it is damaged, not unfinished.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from brainldm.runtime.files import SUMS, read_sums, verify_sums, write_sums
from brainldm.runtime.format import format_names

UNFINISHED = ".unfinished"
DAMAGED = ".damaged"


def finished_steps(folder: Path) -> list[int]:
    """The steps in `folder`, oldest first, as they are on disk now."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def unfinished_path(folder: Path, step: int) -> Path:
    """Where a step is written before it is finished."""
    return folder / f"{step}{UNFINISHED}"


def finish(folder: Path, step: int) -> None:
    """Hash every file of the unfinished `step` and give it its name. Raises OSError."""
    path = unfinished_path(folder, step)
    write_sums(path, _files(path))
    _sync(path)
    path.rename(folder / str(step))
    _sync(folder)


def find_damage(folder: Path, step: int) -> str | None:
    """What is wrong with a finished step ("state/d/ab12: changed"), or None when every file is as it was written."""
    path = folder / str(step)
    try:
        sums = read_sums((path / SUMS).read_bytes())
    except OSError:
        return f"{SUMS}: missing"
    if not sums:
        return f"{SUMS}: empty"
    found = [f"{name or SUMS}: {problem}" for name, problem in verify_sums(path, sums).items()]
    added = sorted(set(_files(path)) - sums.keys() - {SUMS})
    if added and not found:  # a line of SHA256SUMS is gone, or a file is not ours
        found = [f"{added[0]}: not in {SUMS}"]
    return None if not found else format_names(found, 1)


def remove_unfinished(folder: Path) -> None:
    """Delete what a failed or killed save left."""
    for path in folder.glob(f"*{UNFINISHED}*") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path, step: int) -> None:
    """Delete a step, so that a kill meanwhile leaves no half of one under its name."""
    path = unfinished_path(folder, step)
    shutil.rmtree(path, ignore_errors=True)
    (folder / str(step)).rename(path)
    shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, step: int) -> Path:
    """Rename a damaged step, so that its number is free again, and return its new place."""
    path = folder / f"{step}{DAMAGED}"
    shutil.rmtree(path, ignore_errors=True)
    (folder / str(step)).rename(path)
    return path


def superfluous(losses: Mapping[int, float | None], keep_last: int, keep_every: int) -> list[int]:
    """The steps that may go: not among the last `keep_last`, no multiple of `keep_every` (0: none is), and not the one
    with the lowest loss (None: not known)."""
    steps = sorted(losses)
    known = [step for step in steps if losses[step] is not None and not math.isnan(losses[step])]
    best = min(known, key=lambda step: (losses[step], step), default=None)
    kept = {*steps[-keep_last:], best, *(step for step in steps if keep_every and step % keep_every == 0)}
    return [step for step in steps if step not in kept]


def _files(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def _sync(folder: Path) -> None:
    """Bring renames in a folder to disk, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
