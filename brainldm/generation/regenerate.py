"""One brain of a generated dataset once more, to see that it can be had again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from brainldm.diffusion.sampling import Sampling
from brainldm.generation.job import read_job
from brainldm.generation.manifest import Entry, read_brain, read_manifests
from brainldm.generation.sampler import make_sampler
from brainldm.generation.subject import image_bytes
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically
from brainldm.volumes.nifti import INT16_MAX
from brainldm.weights.gan_folder import GanModel
from brainldm.weights.model_folder import Model

TOLERANCE = 2
"""Stored units (1/32767 of the intensity range) by which another machine's last digits may differ."""
_OUTLINE = 1e-4
"""Share of the voxels that may be inside the brain on one machine and outside on another."""


@dataclasses.dataclass(frozen=True)
class Again:
    """A brain that was drawn again. `same`: its bytes are the recorded ones. `units`: the largest difference from the
    file that is there, in stored units; None where that is missing or cannot be read."""

    same: bool
    units: int | None


def regenerate(
    model: Model | GanModel, out: str | os.PathLike, subject: str, to: str | os.PathLike | None = None
) -> Again:
    """Draw brain `subject` of the dataset `out` again, as its manifest says, and compare it; `to` is a new file for it.

    Raises UserError for a subject that the dataset does not record, another model, or a `to` that exists.
    """
    out = Path(out)
    job = read_job(out)
    if job.model_sha256 != model.sha256:
        raise UserError(
            f"{out}: was drawn by the model {job.model_sha256[:12]}, and this is {model.sha256[:12]}. Give that one."
        )
    if to is not None and Path(to).exists():
        raise UserError(f"{to}: exists, and nothing is overwritten. Give another name.")
    entry = next((entry for entry in read_manifests(out) if entry["id"] == subject), None)
    if entry is None:
        raise UserError(f"{out}: no manifest of it has {subject}. Its brains are {job.name(0)} and on.")
    sample = make_sampler(model, job.sampling or Sampling(), batch_size=job.batch_size)
    conditions = model.spec.covariates.encode([entry["conditions"]])
    volume = sample(job.seed, np.array([entry["index"] // job.repeat]), conditions)[0]
    affine = model.spec.grid.affine
    content = image_bytes(job, volume, affine)
    if to is not None:
        write_atomically(to, content)
    return Again(
        hashlib.sha256(content).hexdigest() == entry["sha256"], _units(out, entry, volume, model.spec.zero_background)
    )


def units_apart(before: np.ndarray, again: np.ndarray, cleared: bool) -> int:
    """The largest difference of two volumes [D, H, W], in stored units.

    Where what is around the brain was `cleared`, last digits decide whether a voxel of its outline is brain or 0: such
    voxels do not count as long as they are as few as `_OUTLINE` says.
    """
    difference = np.abs(np.rint(before * INT16_MAX) - np.rint(again * INT16_MAX))
    outline = (before == 0) != (again == 0)
    if cleared and outline.mean() < _OUTLINE:
        difference[outline] = 0
    return int(difference.max())


def _units(out: Path, entry: Entry, volume: np.ndarray, cleared: bool) -> int | None:
    try:
        before = read_brain(out, entry).data
    except UserError:
        return None
    return units_apart(before, volume, cleared) if before.shape == volume.shape else None
