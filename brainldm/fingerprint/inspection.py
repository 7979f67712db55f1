"""A look at every file of a dataset from outside, and into some of them."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from brainldm.datasets.scans import Scan
from brainldm.fingerprint.distributions import Intensities, intensities
from brainldm.fingerprint.options import SAMPLE, CheckOptions
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256, read_json
from brainldm.volumes.nifti import read_volume
from brainldm.volumes.plausibility import looks_like_labels
from brainldm.volumes.probe import Outside, look_at

Progress = Callable[[str, int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Opened:
    """What reading one scan in full gave: its intensities, a hash of its voxels, and whether it looks like a map of
    labels; or the `problem`."""

    name: str
    problem: str = ""
    values: Intensities | None = None
    voxels_sha256: str = ""
    labels: bool = False


@dataclasses.dataclass(frozen=True)
class Inspection:
    """By name of the scan: its outside and the hashes in the sidecars of `prepare` (`sources` of the raw scan,
    `outputs` of the prepared file); and the scans read. `altered` are names of files that are not what their sidecar
    says. `unopened` have an odd outside and were not read, because there are too many. `seconds` is how long reading
    took.
    """

    outsides: dict[str, Outside]
    sources: dict[str, str]
    outputs: dict[str, str]
    opened: list[Opened]
    altered: list[str]
    unopened: list[str]
    seconds: float


def inspect(scans: Sequence[Scan], options: CheckOptions, progress: Progress) -> Inspection:
    """Look at `scans` (names are unique) with `options.workers` threads: reading and unpacking leave Python's lock."""
    with ThreadPoolExecutor(options.workers) as pool:
        names = [scan.name for scan in scans]
        looks = _run(pool, _look, scans, "looking at headers", progress)
        outsides = {name: outside for name, (outside, _) in zip(names, looks, strict=True)}
        sidecars = {name: sidecar for name, (_, sidecar) in zip(names, looks, strict=True) if sidecar}
        chosen, unopened = choose(scans, outsides, options)
        began = time.monotonic()
        opened = _run(pool, _open, chosen, "reading scans", progress)
        seconds = time.monotonic() - began
        outputs = {name: value for name, sidecar in sidecars.items() if (value := sidecar.get("output"))}
        altered = []
        if options.full and outputs:
            hashes = _run(pool, file_sha256, [outsides[name].path for name in outputs], "comparing hashes", progress)
            altered = [name for name, value in zip(outputs, hashes, strict=True) if value != outputs[name]]
    sources = {name: value for name, sidecar in sidecars.items() if (value := sidecar.get("source"))}
    return Inspection(outsides, sources, outputs, opened, altered, unopened, seconds)


def choose(
    scans: Sequence[Scan], outsides: Mapping[str, Outside], options: CheckOptions
) -> tuple[list[Scan], list[str]]:
    """The scans to read: every one that its outside makes doubtful, and a sample of the sound ones at even distances.

    As many doubtful ones as SAMPLE, or the sample when that is larger, are read; the names of the rest come second.
    What has no usable header is not read.
    """
    count = len(scans) if options.full else min(len(scans), SAMPLE if options.sample is None else options.sample)
    doubtful = [scan for scan in scans if outsides[scan.name].doubtful]
    sound = [scan for scan in scans if not outsides[scan.name].doubtful and not outsides[scan.name].problem]
    limit = max(count, SAMPLE)
    places = np.unique(np.linspace(0, len(sound) - 1, min(count, len(sound))).round().astype(int))
    chosen = {scan.name for scan in doubtful[:limit]} | {sound[i].name for i in places.tolist()}
    return [scan for scan in scans if scan.name in chosen], [scan.name for scan in doubtful[limit:]]


def _run(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item], what: str, progress: Progress
) -> list[Result]:
    results = []
    for result in pool.map(work, items):
        results.append(result)
        progress(what, len(results), len(items))
    return results


def _look(scan: Scan) -> tuple[Outside, dict[str, str] | None]:
    return look_at(scan.path), _sidecar(scan.path)


def _sidecar(path: Path) -> dict[str, str] | None:
    """The hashes in the sidecar that `prepare` left beside an image: of the raw scan and of the image."""
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        content = read_json(beside)
    except UserError:
        return None
    found = {"source": content.get("SourceSHA256"), "output": content.get("SHA256")}
    return {key: value for key, value in found.items() if isinstance(value, str)} or None


def _open(scan: Scan) -> Opened:
    try:
        volume = read_volume(scan.path)
    except UserError as error:
        return Opened(scan.name, problem=str(error))
    content = np.ascontiguousarray(volume.data)
    digest = hashlib.sha256(repr((content.shape, np.round(volume.affine, 3).tolist())).encode())
    digest.update(content)
    return Opened(
        scan.name, values=intensities(content), voxels_sha256=digest.hexdigest(), labels=looks_like_labels(content)
    )
