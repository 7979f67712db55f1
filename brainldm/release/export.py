"""From the work dirs of the two stages to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brainldm import __version__
from brainldm.datasets.demography import Demography
from brainldm.diffusion.sampling import Sampling
from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json
from brainldm.runtime.format import format_shape
from brainldm.training.config import covariates_of
from brainldm.training.diffusion import unet_arguments
from brainldm.training.restore import load_autoencoder, read_config, restore_state
from brainldm.training.run_info import read_run_info
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import ModelSpec, save_model
from brainldm.weights.power_ema import AVERAGES, average_of_length

CARD = """# Model card

A latent diffusion model of T1-weighted brain MRI (Pinaya et al. 2022, arXiv 2209.07162), made with brainldm {version}.

- Trained on: {dataset} ({scans} scans)
- Volumes: {shape} voxels at {spacing:g} mm, RAS
- Steps: autoencoder {autoencoder_steps}, denoising network {diffusion_steps}
- Conditions:
{conditions}

model.json holds the distribution of these conditions among the scans trained on, as quantiles, shares and correlations:
`generate` draws from it what is not asked for. It holds nobody's row; the ends of a range are values of single scans.

Use it with `brainldm generate MODEL OUT --n 8`. The files are JSON and safetensors; no code runs from them.

Research use only: not a medical device and not for diagnosis. A generative model can reproduce images that it was
trained on; before sharing it, or images drawn with it, make sure that the terms of the training data allow that.
"""


def export(
    autoencoder_workdir: str | Path,
    diffusion_workdir: str | Path,
    folder: str | Path,
    ema_length: float | None = None,
    half: bool = False,
    notes: str = "",
) -> str:
    """Write the model folder of two finished runs (the diffusion network's moving average) and return its hash.

    With `ema_length` the average of that length over training (see `weights.power_ema`) in place of the run's own.
    With `half` the parameters are rounded to float16. `notes` is Markdown for the end of the model card.
    Raises UserError when a work dir is not of its stage, has no checkpoint, or the denoising network was trained
    on the latents of another autoencoder; and for a length that its snapshots do not give.
    """
    config = read_config(diffusion_workdir, "diffusion")
    dataset = described_dataset(config.data.path)
    autoencoder = load_autoencoder(str(autoencoder_workdir))
    run_info = read_run_info(diffusion_workdir, "autoencoder_sha256", "latent_shape", "scans_training")
    if autoencoder.sha256 != run_info["autoencoder_sha256"]:
        raise UserError(
            f"{diffusion_workdir} was trained on the latents of another autoencoder than {autoencoder_workdir} holds "
            "now. Export it with its own, or train the diffusion stage again."
        )
    state = restore_state(config, diffusion_workdir)
    averaged = state.ema
    if ema_length is not None:
        averaged = average_of_length(Path(diffusion_workdir) / AVERAGES, int(state.step), ema_length, log)
    covariates = covariates_of(config).with_observed(run_info.get("observed", {}))
    grid = training_grid(autoencoder.spacing_mm)
    begun = {
        network: note["sha256"]
        for network, path in (("autoencoder", autoencoder_workdir), ("unet", diffusion_workdir))
        if (note := _run_info(path).get("init_from"))
    }
    autoencoder_config = Path(autoencoder_workdir) / "config.json"
    steps = read_json(autoencoder_config)["num_steps"] if autoencoder_config.exists() else "unknown"
    spec = ModelSpec(
        autoencoder=autoencoder.arguments,
        unet=unet_arguments(config, run_info["latent_shape"][-1], covariates.width),
        schedule=config.schedule.to_dict(),
        prediction=config.loss.prediction,
        latent_scale=float(state.latent_scale),
        sampling=Sampling(**config.sampling),
        grid=grid,
        covariates=covariates,
        provenance={
            "brainldm": __version__,
            **dataset,
            "scans": run_info["scans_training"],
            "autoencoder_steps": steps,
            "diffusion_steps": int(state.step),
            **({"init_from": begun} if begun else {}),
            **({} if ema_length is None else {"ema_length": ema_length}),
        },
        zero_background=bool(run_info.get("zero_background")),
        demography=Demography.from_json(found, covariates) if (found := run_info.get("demography")) else None,
    )
    card = CARD.format(
        version=__version__,
        dataset=dataset["dataset"],
        scans=run_info["scans_training"],
        shape=format_shape(grid.shape),
        spacing=autoencoder.spacing_mm,
        autoencoder_steps=steps,
        diffusion_steps=int(state.step),
        conditions="\n".join(f"  - {condition.name}: {condition.span}" for condition in covariates),
    )
    return save_model(folder, spec, autoencoder.params, averaged, f"{card}\n{notes.strip()}\n" if notes else card, half)


def _run_info(workdir: str | Path) -> dict[str, Any]:
    path = Path(workdir) / "run.json"
    return read_run_info(workdir) if path.exists() else {}


def described_dataset(path: str) -> dict[str, Any]:
    """What the provenance of a model says of the dataset that it learnt from."""
    about = Path(path) / "dataset_description.json"
    content = read_json(about) if about.exists() else {}
    return {
        "dataset": content.get("Name", Path(path).name),
        "embedded_population": bool(content.get("EmbeddedPopulation", False)),
    }
