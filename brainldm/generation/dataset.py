"""Synthetic BIDS datasets: conditions in, volumes and their provenance out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainldm import __version__
from brainldm.datasets.bids import image_path, read_participants, write_dataset_files
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.sampler import make_sampler
from brainldm.runtime.console import Progress
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_json
from brainldm.runtime.lock import new_folder
from brainldm.volumes.nifti import write_volume
from brainldm.weights.model_folder import Model

MARK = "SYNTHETIC"
"""First word of the header's description of every volume that a model made."""

MANIFEST = "manifest-0000.jsonl"

README = """This dataset is synthetic.

Every brain in it was drawn by a latent diffusion model (brainldm {version}, model {model}), for the conditions in
participants.tsv. No image shows a person. The header of every image says {mark} in its description field and its
sidecar says "Synthetic": true.

Research use only; not a medical device and not for diagnosis. Images drawn by a generative model can resemble the
images that it was trained on.
{note}"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a dataset is drawn. `extrapolate` allows conditions outside the ranges of the model."""

    sampling: Sampling = Sampling()
    seed: int = 0
    batch_size: int = 1
    extrapolate: bool = False


def draw_conditions(
    covariates: Covariates, count: int, seed: int, fixed: Mapping[str, str]
) -> list[dict[str, float | str]]:
    """`count` rows of conditions. `fixed` holds, by name, a value ("70", "F") or a range ("60:75").

    A condition that is not named, and one with a range, is drawn uniformly; row k depends on (seed, k) alone.
    Raises UserError for a name or value that the model does not understand.
    """
    bounds: dict[str, tuple[float, float]] = {}
    values: dict[str, float | str] = {}
    for name, text in fixed.items():
        item = covariates[name]
        low, colon, high = text.partition(":")
        if colon and item.levels is None:
            bounds[name] = (float(item.parse(low, "range")), float(item.parse(high, "range")))
            if bounds[name][0] > bounds[name][1]:
                raise UserError(f"{name} {text}: the range is upside down. Write the smaller number first.")
        else:
            values[name] = item.parse(text, "command line")
    rows = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        row: dict[str, float | str] = {}
        for item in covariates:
            share = rng.random()  # drawn for every condition, so that fixing one leaves the others as they were
            if item.name in values:
                row[item.name] = values[item.name]
            elif item.levels is not None:
                row[item.name] = item.at(share)
            else:
                low, high = bounds.get(item.name, (item.low, item.high))
                row[item.name] = _rounded(low + share * (high - low), high - low)
        rows.append(row)
    return rows


def _rounded(value: float, width: float) -> float:
    """To thousandths, or finer where the range is narrow."""
    return round(value, max(3, 4 - math.floor(math.log10(width)) if width > 0 else 3))


def read_conditions(path: str | Path, covariates: Covariates) -> list[dict[str, float | str]]:
    """The conditions of a participants.tsv (or of the dataset that holds one), one row per brain wanted."""
    rows = read_participants(path).to_dict("records")
    return [covariates.parse(row, f"{path}, {row['participant_id']}") for row in rows]


def check_conditions(rows: Sequence[Mapping[str, Any]], covariates: Covariates, extrapolate: bool) -> list[bool]:
    """Which rows lie outside the ranges of the model. Raises UserError for the first unless `extrapolate`."""
    flags = []
    for number, row in enumerate(rows):
        outside = covariates.outside(row)
        if outside and not extrapolate:
            raise UserError(
                f"Brain {number + 1}: {'; '.join(outside)}. The model never saw such a brain. Ask for one inside the "
                "range, or pass --extrapolate to try all the same (it will be said in the output)."
            )
        flags.append(bool(outside))
    return flags


def generate(
    model: Model,
    out: str | Path,
    rows: Sequence[Mapping[str, float | str]],
    settings: Settings,
    note: str = "",
) -> None:
    """Draw one brain per row of conditions and write them as a BIDS dataset in `out`.

    Sample k is drawn with the key folded from (settings.seed, k). `note` ends the dataset's README. Raises UserError
    when `out` holds something, or for conditions outside the model's ranges.
    """
    flags = check_conditions(rows, model.spec.covariates, settings.extrapolate)
    with new_folder(out) as out:
        _generate(model, out, rows, settings, flags, note)


def _generate(
    model: Model,
    out: Path,
    rows: Sequence[Mapping[str, float | str]],
    settings: Settings,
    flags: Sequence[bool],
    note: str,
) -> None:
    spec = model.spec
    sampling = settings.sampling
    sample = make_sampler(model, sampling, batch_size=settings.batch_size)
    codes = spec.covariates.encode(rows)
    width = max(4, len(str(len(rows))))
    ids = [f"sub-{index + 1:0{width}d}" for index in range(len(rows))]
    sampler = {
        "Sampler": "DDIM",
        "Steps": sampling.num_steps,
        "Eta": sampling.eta,
        "Guidance": sampling.guidance,
        "Seed": settings.seed,
    }
    manifest = []
    with Progress("generating", len(rows)) as progress:
        for start in range(0, len(rows), settings.batch_size):
            indices = np.arange(start, min(start + settings.batch_size, len(rows)))
            for index, volume in zip(indices, sample(settings.seed, indices, codes[indices]), strict=True):
                if not np.isfinite(volume).all():
                    raise FloatingPointError(f"{ids[index]}: the model made voxels that are not finite; not written.")
                path = image_path(out, ids[index])
                content = write_volume(
                    path, volume, spec.grid.affine, f"{MARK} brainldm {__version__} {model.sha256[:12]}"
                )
                write_json(
                    path.with_name(path.name.replace(".nii.gz", ".json")),
                    {
                        "Synthetic": True,
                        "Modality": "MR",
                        "Conditions": dict(rows[index]),
                        "Extrapolated": flags[index],
                        **sampler,
                        "Index": int(index),
                        "ModelSHA256": model.sha256,
                    },
                )
                manifest.append(
                    {
                        "id": ids[index],
                        "index": int(index),
                        "seed": settings.seed,
                        "conditions": dict(rows[index]),
                        "file": str(path.relative_to(out)),
                        "bytes": len(content),
                        "sha256": hashlib.sha256(content).hexdigest(),
                        "model_sha256": model.sha256,
                    }
                )
                progress(len(manifest))
    columns = spec.covariates.column_descriptions()
    for entry in columns.values():
        entry["Description"] += " (asked of the model)"
    columns["extrapolated"] = {
        "Description": "whether a condition lies outside the range that the model was trained on",
        "Levels": {"true": "outside", "false": "inside"},
    }
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
            "Description": f"latent diffusion model {model.sha256}, DDIM with {sampling.num_steps} steps",
        },
        readme=README.format(
            version=__version__, model=model.sha256[:12], mark=MARK, note=f"\n{note}\n" if note else ""
        ),
        extra={
            "Synthetic": True,
            "ModelSHA256": model.sha256,
            "TrainedOn": spec.provenance.get("dataset", "unknown"),
            "EmbeddedPopulation": bool(spec.provenance.get("embedded_population", False)),
        },
    )
    lines = "".join(json.dumps(entry) + "\n" for entry in manifest)
    (out / MANIFEST).write_text(lines)
