"""Synthetic BIDS datasets: conditions in, volumes and their provenance out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainldm import __version__
from brainldm.datasets.bids import image_path, write_dataset_files
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.conditions import check_conditions
from brainldm.generation.sampler import make_sampler
from brainldm.runtime.console import Progress
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically, write_json
from brainldm.runtime.lock import new_folder
from brainldm.volumes.nifti import write_volume
from brainldm.weights.gan_folder import GanModel
from brainldm.weights.model_folder import Model
from brainldm.weights.parameter_files import KINDS

MARK = "SYNTHETIC"
"""First word of the header's description of every volume that a model made."""

MANIFEST = "manifest-0000.jsonl"

README = """This dataset is synthetic.

Every brain in it was drawn by {kind} (brainldm {version}, model {model}), {conditions}.
No image shows a person. The header of every image says {mark} in its description field and its sidecar says
"Synthetic": true.

Research use only; not a medical device and not for diagnosis. Images drawn by a generative model can resemble the
images that it was trained on.
{note}"""


_CONDITIONS = {True: "for the conditions in participants.tsv", False: "which takes no conditions"}

SAMPLER_NAMES = {"ddim": "DDIM", "ddpm": "DDPM", "dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun"}
"""What a dataset calls its sampler."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a dataset is drawn.

    The same program of `batch_size` samples runs whatever is left to draw, so a brain depends on its seed, index,
    conditions and the batch size, which is recorded with it, and not on how many are drawn with it. Raises UserError
    for a seed that is not 0 <= seed < 2^63, or a batch size below 1.

    extrapolate: allow conditions outside what the model was trained on.
    """

    sampling: Sampling = Sampling()
    seed: int = 0
    batch_size: int = 4
    extrapolate: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UserError(f"The seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1.")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"The batch size is {self.batch_size!r}; it must be a whole number from 1 on.")


def generate(
    model: Model | GanModel,
    out: str | Path,
    rows: Sequence[Mapping[str, float | str]],
    settings: Settings,
    note: str = "",
) -> None:
    """Draw one brain per row of conditions and write them as a BIDS dataset in `out`.

    Sample k is drawn with the key folded from (settings.seed, k). `note` ends the dataset's README. Raises UserError
    when `out` holds something, or for conditions outside the model's ranges.
    """
    flags = check_conditions(rows, model.spec.covariates, settings.extrapolate, model.spec.takes_subsets)
    with new_folder(out) as out:
        _generate(model, out, rows, settings, flags, note)


def _generate(
    model: Model | GanModel,
    out: Path,
    rows: Sequence[Mapping[str, float | str]],
    settings: Settings,
    flags: Sequence[bool],
    note: str,
) -> None:
    sample = make_sampler(model, settings.sampling, batch_size=settings.batch_size)
    conditions = model.spec.covariates.encode(rows)
    width = max(4, len(str(len(rows))))
    ids = [f"sub-{index + 1:0{width}d}" for index in range(len(rows))]
    manifest = []
    with Progress("generating", len(rows)) as progress:
        for start in range(0, len(rows), settings.batch_size):
            indices = np.arange(start, min(start + settings.batch_size, len(rows)))
            for index, volume in zip(indices, sample(settings.seed, indices, conditions[indices]), strict=True):
                subject = _Subject(ids[index], int(index), rows[index], flags[index])
                manifest.append(_write_subject(out, model, settings, subject, volume))
            progress(len(manifest))  # of whole batches: the brains of one are drawn together
    _write_tables(out, model, settings, ids, rows, flags, note)
    write_atomically(out / MANIFEST, "".join(json.dumps(entry) + "\n" for entry in manifest).encode())


class _Subject(NamedTuple):
    id: str
    index: int
    conditions: Mapping[str, float | str]
    extrapolated: bool


def _write_subject(
    out: Path, model: Model | GanModel, settings: Settings, subject: _Subject, volume: np.ndarray
) -> dict[str, Any]:
    """Write a volume and its sidecar; returns its entry in the manifest."""
    if not np.isfinite(volume).all():
        raise FloatingPointError(f"{subject.id}: the model made voxels that are not finite; not written.")
    path = image_path(out, subject.id)
    description = f"{MARK} brainldm {__version__} {model.sha256[:12]}"
    content = write_volume(path, volume, model.spec.grid.affine, description)
    write_json(
        path.with_name(path.name.replace(".nii.gz", ".json")),
        {
            "Synthetic": True,
            "Modality": "MR",
            "Conditions": dict(subject.conditions),
            "Extrapolated": subject.extrapolated,
            **_drawn_by(model, settings.sampling),
            "Seed": settings.seed,
            "BatchSize": settings.batch_size,
            "Index": subject.index,
            "ModelSHA256": model.sha256,
        },
    )
    return {
        "id": subject.id,
        "index": subject.index,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "conditions": dict(subject.conditions),
        "file": str(path.relative_to(out)),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "model_sha256": model.sha256,
    }


def _drawn_by(model: Model | GanModel, sampling: Sampling) -> dict[str, Any]:
    """What a sidecar says of how its volume was drawn."""
    if isinstance(model, GanModel):
        return {"Model": KINDS[model.spec.kind]}
    return {
        "Sampler": SAMPLER_NAMES[sampling.sampler],
        "Spacing": sampling.spacing,
        "Steps": sampling.num_steps,
        "Eta": sampling.eta,
        "Guidance": sampling.guidance,
        "GuidanceInterval": list(sampling.guidance_interval),
    }


def _write_tables(
    out: Path,
    model: Model | GanModel,
    settings: Settings,
    ids: Sequence[str],
    rows: Sequence[Mapping[str, float | str]],
    flags: Sequence[bool],
    note: str,
) -> None:
    columns = model.spec.covariates.column_descriptions()
    for entry in columns.values():
        entry["Description"] += " (asked of the model)"
    if columns:
        columns["extrapolated"] = {
            "Description": "whether a condition lies outside what the model was trained on",
            "Levels": {"true": "outside", "false": "inside"},
        }
    kind, sampling = KINDS[model.spec.kind], settings.sampling
    if isinstance(model, GanModel):
        description = f"{kind} {model.sha256}"
    else:
        description = (
            f"{kind.removeprefix('a ')} {model.sha256}, {SAMPLER_NAMES[sampling.sampler]} with "
            f"{sampling.num_steps} steps"
        )
    write_dataset_files(
        out,
        name="Synthetic T1w brains",
        rows=[
            {"participant_id": i, **row, "extrapolated": str(flag).lower()}
            for i, row, flag in zip(ids, rows, flags, strict=True)
        ],
        columns=columns,
        generated_by={
            "Name": "brainldm",
            "Version": __version__,
            "Description": description,
        },
        readme=README.format(
            kind=kind,
            version=__version__,
            model=model.sha256[:12],
            conditions=_CONDITIONS[bool(columns)],
            mark=MARK,
            note=f"\n{note}\n" if note else "",
        ),
        extra={
            "Synthetic": True,
            "Conditional": bool(columns),
            "ModelKind": kind,
            **({"ConditionsLeftOut": True} if any(len(row) < len(model.spec.covariates) for row in rows) else {}),
            "ModelSHA256": model.sha256,
            "TrainedOn": model.spec.provenance.get("dataset", "unknown"),
            "EmbeddedPopulation": bool(model.spec.provenance.get("embedded_population", False)),
        },
    )
