"""The released form of a brain-age network: model.json and the parameters and running statistics of the network.

brain_age.safetensors      `params` and `batch_stats` of the network
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from brainldm.models.brain_age import BrainAgeNet
from brainldm.models.build import build
from brainldm.volumes.grids import Grid
from brainldm.weights.description import check_brain_age
from brainldm.weights.parameter_files import BRAIN_AGE, FORMAT_VERSION, open_folder, write_folder

NETWORK = "brain_age.safetensors"


@dataclasses.dataclass(frozen=True)
class BrainAgeSpec:
    """Everything about a brain-age network but its weights; what model.json holds.

    `network` are constructor arguments (dtype by name); its numbers 0 and 1 stand for the ages `years`. `held_out`
    says how well it told the ages of scans that it was not trained on: "mae" in years, "r" (where determined) and "n".
    """

    network: dict[str, Any]
    years: tuple[float, float]
    held_out: dict[str, float]
    grid: Grid
    provenance: dict[str, Any]

    def make_network(self) -> BrainAgeNet:
        """The Linen module."""
        return build("brain_age", self.network, num_devices=1)

    def to_json(self) -> dict[str, Any]:
        """The content of model.json."""
        return {
            "format": "brainldm-model",
            "format_version": FORMAT_VERSION,
            "kind": BRAIN_AGE,
            "network": self.network,
            "years": self.years,
            "held_out": self.held_out,
            "image": self.grid.to_json(),
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BrainAgeSpec:
        """The reverse of `to_json`. Raises UserError for what is no description of such a network."""
        check_brain_age(content)
        low, high = map(float, content["years"])
        held_out = {name: float(content["held_out"][name]) for name in ("mae", "n")}
        if "r" in content["held_out"]:
            held_out["r"] = float(content["held_out"]["r"])
        return cls(
            network=content["network"],
            years=(low, high),
            held_out=held_out,
            grid=Grid.from_json(content["image"]),
            provenance=content["provenance"],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class BrainAgeModel:
    """A loaded brain-age network. `sha256` is the hash of its SHA256SUMS, so it stands for every file of the folder."""

    spec: BrainAgeSpec
    variables: Any
    sha256: str

    def tell(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inside jit: ages [B] in years and features [B, C] of images [B, D, H, W, 1] in [0, 1] on the spec's grid."""
        number, features = self.spec.make_network().apply(self.variables, image)
        low, high = self.spec.years
        return low + (high - low) * number, features


def save_brain_age(folder: str | Path, spec: BrainAgeSpec, variables: Mapping[str, Any], card: str) -> str:
    """Write a model folder of `variables` {"params": tree, "batch_stats": tree} and return its hash.

    Raises UserError when the folder holds something already.
    """
    return write_folder(folder, spec.to_json(), {NETWORK: variables}, card)


def load_brain_age(folder: str | Path) -> BrainAgeModel:
    """Read the model folder of a brain-age network: description and weights as in SHA256SUMS, every parameter as its
    architecture wants. Raises UserError when something is missing, changed, of another kind, or does not fit."""
    opened = open_folder(folder, BRAIN_AGE)

    def read(content: dict[str, Any]) -> tuple[BrainAgeSpec, Any]:
        spec = BrainAgeSpec.from_json(content)
        image = jax.ShapeDtypeStruct((1, *spec.grid.shape, 1), jnp.float32)
        return spec, jax.eval_shape(spec.make_network().init, jax.random.key(0), image)

    spec, shapes = opened.described(read)
    return BrainAgeModel(spec, opened.params(NETWORK, shapes), opened.sha256)
