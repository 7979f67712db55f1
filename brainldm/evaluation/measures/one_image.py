"""One image of a dataset: read, measured, its label map written, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import brainldm
from brainldm.data.pipeline import scale_intensities
from brainldm.datasets.scans import Scan
from brainldm.evaluation.measures.backend import Backend, Image, Measured
from brainldm.evaluation.measures.head_size import recorded_skull, registration_scale
from brainldm.preparation.registration import find_skull
from brainldm.runtime.errors import BrainldmError, UserError
from brainldm.volumes.grids import Grid
from brainldm.volumes.nifti import INT16_MAX, Volume, read_volume, write_volume
from brainldm.volumes.plausibility import looks_like_labels

_SPACE = re.compile(r"_space-[0-9A-Za-z]+")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Context:
    """How the images of a dataset are measured.

    `out`: root of the label maps. `labels`: they are wanted. `people`: the images show people or come from a model that
    learnt from people. `synthetic`: a model made them.
    """

    out: Path
    backend: Backend
    labels: bool
    people: bool
    synthetic: bool


def measure_image(context: Context, scan: Scan) -> Record:
    """The record of one image, with its label map written."""
    found, labels = _found(context, scan), None
    if found.labels is not None:
        labels = labels_path(context, scan)
        volume = read_volume(scan.path)
        write_volume(labels, found.labels, volume.affine, f"brainldm {context.backend.name}", scale_max=INT16_MAX)
    volumes = {name: round(value, 6) if math.isfinite(value) else None for name, value in found.volumes_ml.items()}
    return {
        "name": scan.name,
        **state_of(context, scan),
        "volumes_ml": volumes,
        "reason": found.reason,
        "labels": labels.relative_to(context.out).as_posix() if labels else None,
    }


def _found(context: Context, scan: Scan) -> Measured:
    backend = context.backend
    try:
        volume = read_volume(scan.path)
        if looks_like_labels(volume.data):
            return backend.nothing("a label map or mask, not a T1w image")
        if backend.needs_stripped and _shows_a_skull(context, scan, volume):
            return backend.nothing(f"a whole head, it seems: {backend.name} needs the brain alone")
        data = volume.data.clip(0, 1) if context.synthetic else scale_intensities(volume.data, "minmax", scan.path)
        grid = Grid(volume.data.shape, volume.affine)
        return backend(Image(data, grid, context.people, registration_scale(scan.path)), context.labels)
    except UserError as error:
        return backend.nothing(" ".join(str(error).split()))
    except (BrainldmError, MemoryError, OSError):
        raise
    except Exception as error:  # one odd image must not end the run
        return backend.nothing(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _shows_a_skull(context: Context, scan: Scan, volume: Volume) -> bool:
    """What the sidecar says. Without it a scan is looked at; what a model makes has no skull and a hazy background."""
    recorded = recorded_skull(scan.path)
    looked_at = context.people and not context.synthetic and recorded is None
    return find_skull(volume) == "whole" if looked_at else bool(recorded)


def state_of(context: Context, scan: Scan) -> Record:
    """What decides the volumes of an image: where it differs, the image is measured again."""
    try:
        status = scan.path.stat()
        identity = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    except OSError:  # the reader has the words for it
        identity = {}
    return {
        "backend": context.backend.name,
        "weights_sha256": context.backend.sha256,
        "version": brainldm.__version__,
        **identity,
        "people": context.people,
        "scale": registration_scale(scan.path),
        "skull": recorded_skull(scan.path),
    }


def labels_path(context: Context, scan: Scan) -> Path:
    space = "".join(_SPACE.findall(scan.path.name)[:1])
    name = f"{scan.name}{space}_desc-{context.backend.label}_dseg.nii.gz"
    return context.out / scan.participant_id / (scan.session_id or "") / "anat" / name
