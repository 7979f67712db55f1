"""MONAI state dicts to a model folder and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

from brainldm import __version__
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256, require_new_folder, write_atomically
from brainldm.runtime.format import format_shape
from brainldm.runtime.lock import new_folder
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import ModelSpec, load_model, save_model
from brainldm.weights.monai import (
    autoencoder_from_monai,
    autoencoder_to_monai,
    unet_from_monai,
    unet_to_monai,
)
from brainldm.weights.state_dict import read_state_dict

CARD = """# Model card

A latent diffusion model converted from MONAI state dicts with brainldm {version}.

- Autoencoder: {autoencoder} (SHA-256 {autoencoder_sha256})
- Denoising network: {unet} (SHA-256 {unet_sha256})

The conditions and their ranges are those of the released brain LDM (Pinaya et al. 2022): sex, age 44 to 82 years,
ventricular volume 6.99568 to 171.375 mL and brain volume 1144.24 to 1793.91 mL. The terms of the weights that were
converted hold for this folder and for images drawn with it.
"""


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What state dicts do not say of a model. The defaults are those of the released brain LDM."""

    spacing_mm: float = 1
    orientation: str = "LAS"  # of the volumes that it was trained on: the first axis to the left (LAS) or right (RAS)
    prediction: str = "epsilon"
    latent_scale: float = 1.0
    num_head_channels: tuple[int, ...] | None = None  # None: one head
    autoencoder_norm_groups: int = 32
    unet_norm_groups: int = 32
    schedule: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "kind": "scaled_linear",
            "beta_start": 0.0015,
            "beta_end": 0.0205,
            "num_train_steps": 1000,
        }
    )


def from_monai(autoencoder: str | Path, unet: str | Path, folder: str | Path, unstated: ConversionOptions) -> str:
    """Write a model folder from two state dicts (see `read_state_dict`; old or new key names) and return its hash.

    Raises UserError when they cannot be read, do not fit each other, or `folder` holds something.
    """
    require_new_folder(folder)
    covariates, grid = Covariates(), training_grid(unstated.spacing_mm)
    autoencoder_params, autoencoder_arguments = autoencoder_from_monai(
        read_state_dict(autoencoder, "quant_conv_mu.conv.weight"), norm_num_groups=unstated.autoencoder_norm_groups
    )
    unet_params, unet_arguments = unet_from_monai(
        read_state_dict(unet, "time_embed.0.weight"),
        num_head_channels=unstated.num_head_channels,
        condition_dim=covariates.width,
        norm_num_groups=unstated.unet_norm_groups,
    )
    if autoencoder_arguments["latent_channels"] != unet_arguments["in_channels"]:
        raise UserError(
            f"{autoencoder} makes latents of {autoencoder_arguments['latent_channels']} channels, {unet} denoises "
            f"{unet_arguments['in_channels']}. They do not belong together."
        )
    hashes = {f"{name}_sha256": file_sha256(path) for name, path in (("autoencoder", autoencoder), ("unet", unet))}
    spec = ModelSpec(
        autoencoder={
            **autoencoder_arguments,
            "dtype": "float32",
            "remat": False,
            "mirrored": unstated.orientation == "LAS",
        },
        unet={**unet_arguments, "null_condition": -1.0, "dtype": "float32", "remat": False},
        schedule=unstated.schedule,
        prediction=unstated.prediction,
        latent_scale=unstated.latent_scale,
        sampling=Sampling(),
        grid=grid,
        covariates=covariates,
        provenance={"brainldm": __version__, "converted_from": "MONAI state dicts", **hashes},
    )
    factor = 2 ** (len(spec.unet["channels"]) - 1)
    if any(side % factor for side in spec.latent_shape[:3]):
        raise UserError(
            f"At {unstated.spacing_mm:g} mm the latents are {format_shape(spec.latent_shape[:3])}, and the "
            f"denoising network needs sides that divide by {factor}. Was it trained at another spacing?"
        )
    card = CARD.format(version=__version__, autoencoder=Path(autoencoder).name, unet=Path(unet).name, **hashes)
    return save_model(folder, spec, autoencoder_params, unet_params, card)


def to_monai(model_folder: str | Path, folder: str | Path) -> list[Path]:
    """Write the state dicts of a model folder under MONAI's names, as safetensors, and return the files.

    PyTorch reads them with `safetensors.torch.load_file`. Raises UserError for a network that MONAI cannot express.
    """
    with new_folder(folder) as folder:
        model = load_model(model_folder)
        architecture = model.spec.autoencoder.get("architecture", "kl")
        if architecture != "kl":
            raise UserError(
                f"{model_folder}: its autoencoder has the architecture {architecture}, for which MONAI has no network. "
                "Only the paper's (kl) can be converted."
            )
        if model.spec.takes_subsets:
            raise UserError(
                f"{model_folder}: its conditions may be left out one by one, for which MONAI's network has no inputs. "
                "Only a network trained without config.loss.covariate_dropout can be converted."
            )
        files = {
            "autoencoder.safetensors": autoencoder_to_monai(model.autoencoder),
            "model.safetensors": unet_to_monai(model.unet),
        }
        for name, tensors in files.items():
            write_atomically(folder / name, safetensors.numpy.save(tensors))
        return [folder / name for name in files]


def parse_head_channels(text: str | None) -> Sequence[int] | None:
    """ "0,512,768" -> (0, 512, 768). Raises UserError when it is not a list of numbers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--head-channels {text}: a list of whole numbers is wanted, such as 0,512,768.") from None
