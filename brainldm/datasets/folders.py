"""Folders of scans, BIDS or not. No file is looked into and few are asked for more than their name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from pathlib import Path

from brainldm.datasets.scans import (
    Excluded,
    Scan,
    ScanError,
    ids_of_file,
    inside,
    is_participant_id,
    is_session_id,
    is_t1w_name,
    scan_name,
)
from brainldm.volumes.headers import is_image_name

STAGE = "find"
"""The stage that `Excluded` of this module names."""

_OTHER_KIND = re.compile(
    r"[-_.](mask|dseg|seg|probseg|labels?|aseg|aparc\S*|t2w?|flair|pd|bold|dwi|swi)(\.nii|\.nii\.gz|\.mgh|\.mgz)$",
    re.IGNORECASE,
)
_SPACE = re.compile(r"_space-[^_]+")


def is_bids(root: Path) -> bool:
    """Whether a folder holds sub-* folders, or a description that says so."""
    with os.scandir(root) as entries:
        return any(
            entry.name == "dataset_description.json" or (entry.name.startswith("sub-") and entry.is_dir())
            for entry in entries
        )


def _list_folder(path: str | Path) -> list[os.DirEntry]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def find_bids(root: Path, pattern: str | None) -> tuple[list[Scan], list[Excluded]]:
    """The T1w images sub-*/[ses-*/]anat/*_T1w.nii[.gz] of a BIDS dataset, and what is wrong with others."""
    scans: list[Scan] = []
    excluded: list[Excluded] = []
    for person in _list_folder(root):
        if not person.name.startswith("sub-") or not person.is_dir():
            continue
        before = len(scans) + len(excluded)
        try:
            if not is_participant_id(person.name):
                raise ScanError("no BIDS id: sub- is followed by letters and digits")
            _require_inside(root, person)
            folders = [e for e in _list_folder(person.path) if e.name == "anat" or e.name.startswith("ses-")]
            for folder in folders:
                scans_of, excluded_of = _find_session(root, person.name, folder, pattern)
                scans += scans_of
                excluded += excluded_of
            if len(scans) + len(excluded) == before:
                raise ScanError("no T1w image" + (f" that matches {pattern}" if pattern else ""))
        except ScanError as reason:
            excluded.append(Excluded(person.name, Path(person.path), STAGE, str(reason)))
        except OSError as error:
            excluded.append(Excluded(person.name, Path(person.path), STAGE, f"cannot be read ({error.strerror})"))
    return scans, excluded


def _find_session(
    root: Path, person: str, folder: os.DirEntry, pattern: str | None
) -> tuple[list[Scan], list[Excluded]]:
    """The T1w image of one session (or of a person without sessions)."""
    session = folder.name if folder.name.startswith("ses-") else None
    name, anat = scan_name(person, session), folder
    try:
        if session and not is_session_id(session):
            raise ScanError("no BIDS id: ses- is followed by letters and digits")
        _require_inside(root, folder)
        if session:
            anat = next((entry for entry in _list_folder(folder.path) if entry.name == "anat"), None)
            if anat is None:
                return [], []
            _require_inside(root, anat)
        files = [entry for entry in _list_folder(anat.path) if not entry.name.startswith(".")]
        images = [e for e in files if is_t1w_name(e.name) and matches(root, e.path, pattern)]
        if not images:
            return [], []
        if len(images) > 1:
            raise ScanError(
                f"{len(images)} T1w images ({', '.join(e.name for e in images[:3])}); choose one by a pattern"
            )
        _require_inside(root, images[0])
        if not images[0].name.startswith(f"{name}_"):
            raise ScanError(f"{images[0].name} lies in the folder of {name}: whose is it?")
    except ScanError as reason:
        return [], [Excluded(name, Path(anat.path), STAGE, str(reason))]
    except OSError as error:
        return [], [Excluded(name, Path(anat.path), STAGE, f"cannot be read ({error.strerror})")]
    return [Scan(person, session, Path(images[0].path), {}, _mask_of(root, images[0].name, files))], []


def _mask_of(root: Path, image: str, files: Iterable[os.DirEntry]) -> Path | None:
    """The one brain mask (desc-brain_mask) in the space of an image, if there is one."""
    space = _SPACE.findall(image)
    masks = [
        entry
        for entry in files
        if entry.name.endswith(("_desc-brain_mask.nii", "_desc-brain_mask.nii.gz"))
        and _SPACE.findall(entry.name) == space
        and (not entry.is_symlink() or inside(root, entry.path))
    ]
    return Path(masks[0].path) if len(masks) == 1 else None


def _require_inside(root: Path, entry: os.DirEntry) -> None:
    if entry.is_symlink() and not inside(root, entry.path):
        raise ScanError(f"a symbolic link leads out of {root}; copy the scan into it")


def matches(root: Path, path: str, pattern: str | None) -> bool:
    """Whether the name of a file, or its path below `root`, matches a glob pattern (None: every file does)."""
    if pattern is None:
        return True
    below = os.path.relpath(path, root)
    return fnmatch.fnmatch(below, pattern) or fnmatch.fnmatch(os.path.basename(path), pattern)


def find_in_folder(root: Path, pattern: str | None) -> tuple[list[Scan], list[Excluded]]:
    """Every image below a folder, named by its file; hidden files and folders are passed over."""
    files: list[tuple[Path, str]] = []
    excluded: list[Excluded] = []
    linked: list[Path] = []
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        try:
            entries = _list_folder(folder)
        except OSError as error:
            name = os.path.relpath(folder, root)
            excluded.append(Excluded(name, Path(folder), STAGE, f"cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            link = entry.is_symlink()
            if entry.is_dir():
                # a linked folder inside the tree is found where it lies
                if not link:
                    waiting.append(entry.path)
                elif not inside(root, entry.path):
                    excluded.append(_left_out(root, entry.path, f"a symbolic link leads out of {root}"))
            elif is_image_name(entry.name) and matches(root, entry.path, pattern):
                if link and not inside(root, entry.path):
                    excluded.append(_left_out(root, entry.path, f"a symbolic link leads out of {root}"))
                elif pattern is None and _OTHER_KIND.search(entry.name):
                    why = "its name is that of a mask, a segmentation or another contrast; name it by a pattern if not"
                    excluded.append(_left_out(root, entry.path, why))
                elif link:
                    linked.append(Path(entry.path))
                else:
                    files.append((Path(entry.path), os.path.relpath(entry.path, root)))
    here = {os.path.realpath(path) for path, _ in files} if linked else set()
    for path in linked:
        if os.path.realpath(path) in here:
            excluded.append(_left_out(root, str(path), "a symbolic link to a scan that is found where it lies"))
        else:
            files.append((path, os.path.relpath(path, root)))
    return name_files(files, excluded)


def _left_out(root: Path, path: str, reason: str) -> Excluded:
    return Excluded(os.path.relpath(path, root), Path(path), STAGE, reason)


def name_files(files: Iterable[tuple[Path, str]], excluded: Iterable[Excluded]) -> tuple[list[Scan], list[Excluded]]:
    """Scans named by their files, (path, how it was written)."""
    scans, out = [], list(excluded)
    for path, written in files:
        try:
            person, session = ids_of_file(path)
            scans.append(Scan(person, session, path, {}))
        except ScanError as reason:
            out.append(Excluded(written, path, STAGE, str(reason)))
    return scans, out
