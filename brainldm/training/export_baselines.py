"""From the work dir of an adversarial baseline to a model folder."""

from __future__ import annotations

from pathlib import Path

from brainldm import __version__
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json
from brainldm.runtime.format import format_shape
from brainldm.training import gan
from brainldm.training.export import described_dataset
from brainldm.training.restore import read_config, restore_state
from brainldm.volumes.grids import training_grid
from brainldm.weights.gan_folder import GANS, GanSpec, save_gan
from brainldm.weights.parameter_files import KINDS

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


def export_baseline(workdir: str | Path, folder: str | Path) -> str:
    """Write the model folder of a run of a baseline and return its hash.

    Raises UserError when the work dir is of another stage or has no checkpoint.
    """
    config = read_config(workdir)
    if config.stage not in GANS:
        raise UserError(
            f"{workdir}: the work dir of the {config.stage} stage, of which alone no model is made. A latent diffusion "
            "model takes two: brainldm export AE_WORKDIR LDM_WORKDIR MODEL."
        )
    run_info, state = read_json(Path(workdir) / "run.json"), restore_state(config, workdir)
    provenance = {"brainldm": __version__, **described_dataset(config.data.path), "scans": run_info["scans_training"]}
    spec = GanSpec(
        kind=config.stage,
        generator=gan.generator_arguments(config),
        encoder=gan.encoder_arguments(config) if config.stage == "vae_gan" else None,
        grid=training_grid(config.data.spacing_mm),
        provenance={**provenance, "steps": int(state.step)},
    )
    kind = KINDS[config.stage]
    card = CARD.format(
        kind=kind[0].upper() + kind[1:],
        version=__version__,
        dataset=provenance["dataset"],
        scans=provenance["scans"],
        shape=format_shape(spec.grid.shape),
        spacing=config.data.spacing_mm,
        steps=int(state.step),
    )
    return save_gan(folder, spec, state.params, card)
