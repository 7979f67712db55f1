"""From a work dir that makes a model by itself, of an adversarial baseline or the brain-age network, to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_collections

from brainldm import __version__
from brainldm.release.export import described_dataset
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_number, format_shape
from brainldm.training import brain_age, gan
from brainldm.training.metrics import read_metrics
from brainldm.training.restore import read_config, restore_state
from brainldm.training.run_info import read_run_info
from brainldm.volumes.grids import training_grid
from brainldm.weights.brain_age_folder import BrainAgeSpec, save_brain_age
from brainldm.weights.gan_folder import GANS, GanSpec, save_gan
from brainldm.weights.parameter_files import BRAIN_AGE, KINDS

CARD = """# Model card

{kind}, of T1-weighted brain MRI, made with brainldm {version}: something to compare a latent diffusion model with.
Its networks are those of brainldm (docs/baselines.md), not those of Pinaya et al. 2022, which were not published.

- Trained on: {dataset} ({scans} scans)
- Volumes: {shape} voxels at {spacing:g} mm, RAS
- Steps: {steps}
- Conditions: none

Use it with `brainldm generate MODEL OUT --n 8`. The files are JSON and safetensors; no code runs from them.

Research use only: not a medical device and not for diagnosis. A generative model can reproduce images that it was
trained on; before sharing it, or images drawn with it, make sure that the terms of the training data allow that.
"""


BRAIN_AGE_CARD = """# Model card

The network of Cole et al. 2017, which tells the age of a brain from its T1w image, made with brainldm {version}.

- Trained on: {dataset} ({scans} scans)
- Volumes: {shape} voxels at {spacing:g} mm, RAS, each scaled to [0, 1] by its own minimum and maximum
- Ages: {low:g} to {high:g} years are its numbers 0 to 1
- Steps: {steps}
- On {n:g} scans of people that it was not trained on: mean absolute error {mae:.2f} years, r {r}

Use it with `brainldm evaluate SYNTHETIC REAL OUT --brain-age MODEL`. The files are JSON and safetensors; no code runs
from them.

Research use only: not a medical device and not for diagnosis.
"""


def export_alone(workdir: str | Path, folder: str | Path) -> str:
    """Write the model folder of one run, of a baseline or the brain-age network, and return its hash.

    Raises UserError when the work dir is of another stage or has no checkpoint.
    """
    config = read_config(workdir)
    if config.stage in GANS:
        return _export_gan(config, Path(workdir), folder)
    if config.stage == BRAIN_AGE:
        return _export_brain_age(config, Path(workdir), folder)
    raise UserError(
        f"{workdir}: the work dir of the {config.stage} stage, of which alone no model is made. A latent diffusion "
        "model takes two: brainldm export AE_WORKDIR LDM_WORKDIR MODEL."
    )


def _known(config: ml_collections.ConfigDict, workdir: Path, state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The provenance of a model, and what every card says."""
    scans, grid = read_run_info(workdir, "scans_training")["scans_training"], training_grid(config.data.spacing_mm)
    dataset, steps = described_dataset(config.data.path), int(state.step)
    said = {"version": __version__, "dataset": dataset["dataset"], "scans": scans, "steps": steps}
    said |= {"shape": format_shape(grid.shape), "spacing": config.data.spacing_mm}
    return {"brainldm": __version__, **dataset, "scans": scans, "steps": steps}, said


def _export_gan(config: ml_collections.ConfigDict, workdir: Path, folder: str | Path) -> str:
    state = restore_state(config, workdir)
    provenance, said = _known(config, workdir, state)
    spec = GanSpec(
        kind=config.stage,
        generator=gan.generator_arguments(config),
        encoder=gan.encoder_arguments(config) if config.stage == "vae_gan" else None,
        grid=training_grid(config.data.spacing_mm),
        provenance=provenance,
        zero_background=bool(read_run_info(workdir).get("zero_background")),
    )
    kind = KINDS[config.stage]
    return save_gan(folder, spec, state.params, CARD.format(kind=kind[0].upper() + kind[1:], **said))


def _export_brain_age(config: ml_collections.ConfigDict, workdir: Path, folder: str | Path) -> str:
    state = restore_state(config, workdir)
    provenance, said = _known(config, workdir, state)
    columns = read_metrics(workdir, "validation")
    places = [place for place, step in enumerate(columns.get("step", ())) if step == int(state.step)]
    if not places:
        raise UserError(
            f"{workdir}: metrics.jsonl has no validation of step {int(state.step)}, the newest that is saved, so how "
            "well this network tells ages is not known. Train on to the end, or with config.every.validate."
        )
    whole = [
        name for name in ("mae", "r") if len(columns.get(name, ())) == len(columns["step"])
    ]  # r may be undetermined
    held_out = {name: columns[name][places[0]] for name in whole}
    held_out["n"] = read_run_info(workdir, "scans_validation")["scans_validation"]
    low, high = brain_age.age_range(config)
    spec = BrainAgeSpec(
        config.model.to_dict(), (low, high), held_out, training_grid(config.data.spacing_mm), provenance
    )
    told = {**held_out, "r": format_number(held_out.get("r")), "low": low, "high": high}
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return save_brain_age(folder, spec, variables, BRAIN_AGE_CARD.format(**told, **said))
