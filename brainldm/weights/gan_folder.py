"""The released form of an adversarial baseline: model.json and the parameters of its networks.

generator.safetensors      from a vector to a volume
encoder.safetensors        of a VAE-GAN: from a volume to the mean and the logarithm of the variance of a vector
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.models.build import build
from brainldm.models.vector_gan import VolumeCritic, VolumeGenerator
from brainldm.volumes.grids import Grid
from brainldm.weights.description import ZERO_BACKGROUND, check_gan
from brainldm.weights.model_folder import Model, load_model
from brainldm.weights.parameter_files import FORMAT_VERSION, LATENT_DIFFUSION, ModelFolder, open_folder, write_folder

GANS = ("lsgan", "vae_gan")
"""Kinds of models that this file is about."""

GENERATOR, ENCODER = "generator.safetensors", "encoder.safetensors"


@dataclasses.dataclass(frozen=True)
class GanSpec:
    """Everything about a baseline but its weights; what model.json holds.

    `generator` and `encoder` (None for an LSGAN) are constructor arguments (dtype by name). It has no conditions.
    `zero_background` is that of `ModelSpec`.
    """

    kind: str
    generator: dict[str, Any]
    encoder: dict[str, Any] | None
    grid: Grid
    provenance: dict[str, Any]
    zero_background: bool = False

    @property
    def covariates(self) -> Covariates:
        """No conditions."""
        return Covariates(())

    @property
    def takes_subsets(self) -> bool:
        """There is nothing to leave out."""
        return False

    @property
    def sampling(self) -> Sampling:
        """Nothing is done in steps."""
        return Sampling()

    @property
    def demography(self) -> None:
        """Nobody's conditions were learnt."""
        return None

    def make_generator(self, num_devices: int = 1) -> VolumeGenerator:
        """The Linen module, for programs whose arrays are sharded over `num_devices`."""
        return build("generator", self.generator, num_devices=num_devices)

    def make_encoder(self) -> VolumeCritic | None:
        """The Linen module, where there is an encoder."""
        return build("critic", self.encoder, num_devices=1) if self.encoder else None

    def to_json(self) -> dict[str, Any]:
        """The content of model.json."""
        return {
            "format": "brainldm-model",
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "generator": self.generator,
            "encoder": self.encoder,
            "image": self.grid.to_json(),
            "provenance": self.provenance,
            **({ZERO_BACKGROUND: True} if self.zero_background else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GanSpec:
        """The reverse of `to_json`. Raises UserError for what is no description of a baseline."""
        check_gan(content)
        names = ("kind", "generator", "encoder", "provenance")
        background = content.get(ZERO_BACKGROUND, False)
        grid = Grid.from_json(content["image"])
        return cls(grid=grid, zero_background=background, **{name: content[name] for name in names})


@dataclasses.dataclass(frozen=True, eq=False)
class GanModel:
    """A loaded baseline. `sha256` is the hash of its SHA256SUMS, so it stands for every file of the folder."""

    spec: GanSpec
    generator: Any
    encoder: Any
    sha256: str


def save_gan(folder: str | Path, spec: GanSpec, params: Mapping[str, Any], card: str) -> str:
    """Write a model folder of `params` {"generator": tree, "encoder": tree} and return its hash.

    Raises UserError when the folder holds something already.
    """
    files = {GENERATOR: params["generator"], **({ENCODER: params["encoder"]} if spec.encoder else {})}
    return write_folder(folder, spec.to_json(), files, card)


def load_generator(folder: str | Path) -> Model | GanModel:
    """Read the model folder of anything that volumes can be drawn with, everything checked as by `load_model`.

    Raises UserError as `load_model` does.
    """
    opened = open_folder(folder, LATENT_DIFFUSION, *GANS)
    return load_model(folder) if opened.kind == LATENT_DIFFUSION else _gan(opened)


def _gan(opened: ModelFolder) -> GanModel:
    def read(content: dict[str, Any]) -> tuple[GanSpec, VolumeGenerator, VolumeCritic | None]:
        spec = GanSpec.from_json(content)
        return spec, spec.make_generator(), spec.make_encoder()

    spec, generator, encoder = opened.described(read)
    key, encoder_params = jax.random.key(0), None
    z = jax.ShapeDtypeStruct((1, generator.latent_size), jnp.float32)
    if encoder is not None:
        image = jax.ShapeDtypeStruct((1, *spec.grid.shape, 1), jnp.float32)
        encoder_params = opened.params(ENCODER, jax.eval_shape(encoder.init, key, image)["params"])
    generator_params = opened.params(GENERATOR, jax.eval_shape(generator.init, key, z)["params"])
    return GanModel(spec, generator_params, encoder_params, opened.sha256)
