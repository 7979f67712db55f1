"""One synthetic brain on disk: its image, and what the manifest says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainldm.datasets.bids import image_path
from brainldm.generation.archive import pack
from brainldm.generation.job import Job, Row
from brainldm.generation.manifest import Entry
from brainldm.runtime.files import write_atomically
from brainldm.volumes.grids import SPACE
from brainldm.volumes.nifti import volume_bytes

MARK = "SYNTHETIC"
"""First word of the header's description of every volume that a model made."""


class Written(NamedTuple):
    """A brain's entry in the manifest and, where it is to be appended to a tar, its members."""

    entry: Entry
    packed: bytes = b""


class BadBrain(Exception):
    """A volume that is not to be written, and why."""


def subject_path(out: Path, job: Job, index: int) -> Path:
    """Where the image of a brain goes."""
    return image_path(out, job.subject_id(index), SPACE, job.session_id(index))


def image_bytes(job: Job, volume: np.ndarray, affine: np.ndarray) -> bytes:
    """The file of a volume [D, H, W]: compressed NIfTI whose header says what it is."""
    return volume_bytes(volume, affine, f"{MARK} brainldm {job.version} {job.model_sha256[:12]}")


def write_subject(
    out: Path,
    job: Job,
    index: int,
    conditions: Row,
    extrapolated: bool,
    volume: np.ndarray,
    affine: np.ndarray,
    finish: Callable[[np.ndarray], np.ndarray],
) -> Written:
    """Write the volume [D, H, W] of brain `index`, finished, or pack it where it goes into a tar.

    Raises BadBrain for a volume that is not finite or has one value everywhere: such are never written.
    """
    if not np.isfinite(volume).all():
        raise BadBrain(f"{job.name(index)}: the model made voxels that are not finite")
    if volume.min() == volume.max():
        raise BadBrain(f"{job.name(index)}: the model made one value everywhere")
    volume = finish(volume)
    path = subject_path(out, job, index)
    content = image_bytes(job, volume, affine)
    entry = {
        "id": job.name(index),
        "index": index,
        "seed": job.seed,
        "noise": index // job.repeat,
        "batch_size": job.batch_size,
        "conditions": dict(conditions),
        "extrapolated": extrapolated,
        "file": path.relative_to(out).as_posix(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "mean": round(float(volume.mean()), 5),
        "p99": round(float(np.percentile(volume, 99)), 5),
        "model_sha256": job.model_sha256,
    }
    if job.archive:
        return Written(*pack(entry, content))
    write_atomically(path, content)
    return Written(entry)
