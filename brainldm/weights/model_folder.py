"""The released form of a latent diffusion model: a folder of JSON and safetensors, never code or pickles.

model.json                 architectures, schedule, prediction, latent scale, image grid, conditions and whose they
                           were, provenance
autoencoder.safetensors    parameters of both networks, see parameter_files.py
unet.safetensors
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from brainldm.datasets.covariates import Covariates
from brainldm.datasets.demography import Demography
from brainldm.diffusion.sampling import Sampling
from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.build import build
from brainldm.models.unet import DiffusionUNet
from brainldm.volumes.grids import Grid
from brainldm.weights.description import ZERO_BACKGROUND, check_latent_diffusion
from brainldm.weights.parameter_files import FORMAT_VERSION, LATENT_DIFFUSION, open_folder, write_folder

AUTOENCODER, UNET = "autoencoder.safetensors", "unet.safetensors"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its weights; what model.json holds.

    `autoencoder` and `unet` are constructor arguments (dtype by name), `schedule` those of make_schedule,
    `sampling` how samples are drawn by default, `demography` whose conditions it was trained on (None: not known).
    `zero_background` says that there is nothing around the brains that it learnt from.
    """

    autoencoder: dict[str, Any]
    unet: dict[str, Any]
    schedule: dict[str, Any]
    prediction: str
    latent_scale: float
    sampling: Sampling
    grid: Grid
    covariates: Covariates
    provenance: dict[str, Any]
    demography: Demography | None = None
    zero_background: bool = False

    @property
    def kind(self) -> str:
        """What the model is, one of `parameter_files.KINDS`."""
        return LATENT_DIFFUSION

    def make_autoencoder(self, num_devices: int = 1) -> AutoencoderKL:
        """The Linen module, for programs whose arrays are sharded over `num_devices`."""
        return build("autoencoder", self.autoencoder, num_devices=num_devices)

    def make_unet(self, num_devices: int = 1) -> DiffusionUNet:
        """The Linen module, for programs whose arrays are sharded over `num_devices`."""
        return build("unet", self.unet, num_devices=num_devices)

    @property
    def takes_subsets(self) -> bool:
        """Whether conditions may be left out one by one, because the denoising network learnt to go without."""
        return bool(self.unet.get("condition_flags"))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, [d, h, w, C]."""
        factor = 2 ** self.make_autoencoder().halvings
        return (*(side // factor for side in self.grid.shape), self.autoencoder["latent_channels"])

    def to_json(self) -> dict[str, Any]:
        """The content of model.json."""
        return {
            "format": "brainldm-model",
            "format_version": FORMAT_VERSION,
            "autoencoder": self.autoencoder,
            "unet": self.unet,
            "schedule": self.schedule,
            "prediction": self.prediction,
            "latent_scale": self.latent_scale,
            "latent_shape": self.latent_shape,
            "sampling": self.sampling.to_json(),
            "image": self.grid.to_json(),
            "covariates": self.covariates.to_json(),
            "provenance": self.provenance,
            **({} if self.demography is None else {"demography": self.demography.to_json()}),
            **({ZERO_BACKGROUND: True} if self.zero_background else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelSpec:
        """The reverse of `to_json`. Raises UserError for what is no description of a model."""
        check_latent_diffusion(content)
        covariates, demography = Covariates.from_json(content["covariates"]), content.get("demography")
        return cls(
            grid=Grid.from_json(content["image"]),
            covariates=covariates,
            demography=None if demography is None else Demography.from_json(demography, covariates),
            sampling=Sampling(**content["sampling"]),
            zero_background=content.get(ZERO_BACKGROUND, False),
            **{
                field.name: content[field.name]
                for field in dataclasses.fields(cls)
                if field.name not in ("grid", "covariates", "sampling", "demography", "zero_background")
            },
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. `sha256` is the hash of its SHA256SUMS, so it stands for every file of the folder."""

    spec: ModelSpec
    autoencoder: Any
    unet: Any
    sha256: str


def save_model(folder: str | Path, spec: ModelSpec, autoencoder: Any, unet: Any, card: str, half: bool = False) -> str:
    """Write a model folder, with `half` in float16, and return its hash.

    Raises UserError when the folder holds something already.
    """
    return write_folder(folder, spec.to_json(), {AUTOENCODER: autoencoder, UNET: unet}, card, half)


def load_model(folder: str | Path) -> Model:
    """Read a model folder: description and weights as in SHA256SUMS, every parameter as its architecture wants.

    Raises UserError when something is missing, changed, of another kind or format version, or does not fit.
    """
    opened = open_folder(folder, LATENT_DIFFUSION)

    def read(content: dict[str, Any]) -> tuple[ModelSpec, AutoencoderKL, DiffusionUNet]:
        spec = ModelSpec.from_json(content)
        return spec, spec.make_autoencoder(), spec.make_unet()

    spec, autoencoder, unet = opened.described(read)
    return Model(
        spec=spec,
        autoencoder=opened.params(AUTOENCODER, autoencoder_shapes(autoencoder, spec.grid)),
        unet=opened.params(UNET, unet_shapes(unet, spec.latent_shape, spec.covariates.width)),
        sha256=opened.sha256,
    )


def autoencoder_shapes(autoencoder: AutoencoderKL, grid: Grid) -> Any:
    """The parameter tree of the autoencoder as shapes."""
    image = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    return jax.eval_shape(autoencoder.init, jax.random.key(0), image)["params"]


def unet_shapes(unet: DiffusionUNet, latent_shape: tuple[int, ...], condition_dim: int) -> Any:
    """The parameter tree of the denoising network as shapes."""
    return jax.eval_shape(
        unet.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, condition_dim), jnp.float32),
    )["params"]
