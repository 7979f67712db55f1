"""The stages by name: the one place that asks a config which stage it is of."""

from __future__ import annotations

import ml_collections
from jax.sharding import Mesh

from brainldm.training.stage import Stage
from brainldm.training.stage_autoencoder import AutoencoderStage
from brainldm.training.stage_brain_age import BrainAgeStage
from brainldm.training.stage_diffusion import DiffusionStage
from brainldm.training.stage_gan import LsganStage, VaeGanStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (AutoencoderStage, DiffusionStage, LsganStage, VaeGanStage, BrainAgeStage)
}


def stage_class(config: ml_collections.ConfigDict) -> type[Stage]:
    """The class of the stage that `config` describes."""
    return STAGES[config.stage]


def make_stage(config: ml_collections.ConfigDict, mesh: Mesh) -> Stage:
    """The stage that `config` describes, on `mesh`."""
    return stage_class(config)(config, mesh)
