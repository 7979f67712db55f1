"""The stages by name: the one place that asks a config which stage it is of."""

from __future__ import annotations

import ml_collections
from jax.sharding import Mesh

from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import shown
from brainldm.training.stage import Stage
from brainldm.training.stage_autoencoder import AutoencoderStage
from brainldm.training.stage_brain_age import BrainAgeStage
from brainldm.training.stage_diffusion import DiffusionStage
from brainldm.training.stage_gan import LsganStage, VaeGanStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (AutoencoderStage, DiffusionStage, LsganStage, VaeGanStage, BrainAgeStage)
}


def stage_class(config: ml_collections.ConfigDict) -> type[Stage]:
    """The class of the stage that `config` describes. Raises UserError when there is no such stage."""
    if not isinstance(config.get("stage"), str) or config.stage not in STAGES:
        raise UserError(f"config.stage is {shown(config.get('stage'))}; it can be {' or '.join(STAGES)}.")
    return STAGES[config.stage]


def make_stage(config: ml_collections.ConfigDict, mesh: Mesh) -> Stage:
    """The stage that `config` describes, on `mesh`."""
    return stage_class(config)(config, mesh)
