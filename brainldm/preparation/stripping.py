"""The user's own brain masks, and skull strippers that the user has: none comes with this package."""

from __future__ import annotations

import shlex
import string
import subprocess
import tempfile
from pathlib import Path

from brainldm.runtime.errors import UserError
from brainldm.volumes.headers import is_image_name
from brainldm.volumes.nifti import Volume, read_volume

_SECONDS = 3600
"""A tool that takes longer for one scan hangs."""


def stem(path: Path) -> str:
    """The file's name without .nii, .nii.gz, .mgh or .mgz."""
    name = path.name.removesuffix(".gz")
    for suffix in (".nii", ".mgh", ".mgz"):
        name = name.removesuffix(suffix)
    return name


def list_masks(folder: Path) -> dict[str, list[Path]]:
    """The images anywhere in `folder`, by stem. Raises UserError when there is no such folder or no image in it."""
    if not folder.is_dir():
        raise UserError(f"--masks {folder}: no such folder. Give the folder that holds a brain mask for each scan.")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if is_image_name(path.name):
            found.setdefault(stem(path), []).append(path)
    if not found:
        raise UserError(f"--masks {folder}: no image in it. Masks are named as their scans, with or without _mask.")
    return found


def mask_of(masks: dict[str, list[Path]], scan: Path) -> Path | None:
    """The mask with the stem of `scan`, or that and "_mask"; None without one. Raises UserError for several."""
    found = [path for name in (stem(scan), f"{stem(scan)}_mask") for path in masks.get(name, ()) if path != scan]
    if len(found) > 1:
        raise UserError(f"Several masks for {scan.name}: {', '.join(map(str, found[:3]))}. Keep one of them.")
    return found[0] if found else None


def check_command(command: str) -> None:
    """Raises UserError for a template of a command that cannot work: odd quotes, unknown or missing fields."""
    try:
        words = shlex.split(command)
        fields = {name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None}
    except ValueError as error:
        raise UserError(f"--strip-command {command!r} cannot be split into words: {error}.") from error
    unknown = sorted(fields - {"input", "output", "mask"})
    if unknown:
        raise UserError(
            f"--strip-command: {{{unknown[0]}}} is unknown. It can hold {{input}}, {{output}} and {{mask}}."
        )
    if "input" not in fields or not fields & {"output", "mask"}:
        raise UserError(
            "--strip-command must name {input} and at least one of {output} (the brain) and {mask}, as in "
            "'mri_synthstrip -i {input} -o {output} -m {mask}'."
        )


def strip_by_command(command: str, scan: Path) -> Volume:
    """Run a skull stripper on the file `scan` and return its brain mask (voxels above half are brain).

    The words of `command` are filled in and run without a shell. With {mask} the mask is what it writes there,
    else every voxel of {output} that is not 0. Raises UserError when it fails, hangs or writes nothing readable.
    """
    with tempfile.TemporaryDirectory(prefix="brainldm-strip-") as folder:
        places = {"input": str(scan), "output": f"{folder}/brain.nii.gz", "mask": f"{folder}/mask.nii.gz"}
        words = [word.format(**places) for word in shlex.split(command)]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS
            )
        except FileNotFoundError as error:
            raise UserError(f"{words[0]}: no such command. Install it, or give its whole path.") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{words[0]} on {scan.name}: {error}.") from error
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())[-300:].replace(folder, "(temporary)")
            raise UserError(f"{words[0]} failed on {scan.name} with exit code {done.returncode}: {said}")
        wrote = Path(places["mask"] if "{mask}" in command else places["output"])
        if not wrote.exists():
            raise UserError(f"{words[0]} ended well on {scan.name} but wrote no file. Is the command complete?")
        volume = read_volume(wrote)
    return Volume((volume.data != 0).astype("float32"), volume.affine)
