"""Networks from their names and constructor arguments, as configs and model.json hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.brain_age import BrainAgeNet
from brainldm.models.discriminator import PatchDiscriminator
from brainldm.models.layers import conv_route
from brainldm.models.space_to_depth import SpaceToDepthAutoencoder
from brainldm.models.unet import DiffusionUNet
from brainldm.models.vector_gan import VolumeCritic, VolumeGenerator
from brainldm.runtime.errors import UserError

AUTOENCODERS: dict[str, type[AutoencoderKL]] = {"kl": AutoencoderKL, "space_to_depth": SpaceToDepthAutoencoder}
"""Autoencoders by the argument `architecture`; without it "kl", the paper's."""

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": DiffusionUNet,
    "discriminator": PatchDiscriminator,
    "generator": VolumeGenerator,
    "critic": VolumeCritic,
    "brain_age": BrainAgeNet,
}

DTYPES = ("float32", "bfloat16")
"""Types that a network can compute in, by name."""


def build(name: str, arguments: Mapping[str, Any], *, num_devices: int) -> Any:
    """The Linen module `name` ("autoencoder", or one of NETWORKS) with its constructor arguments, the dtype by name.

    num_devices: over how many devices the arrays of the program that it is part of are sharded; 1 where only shapes are
    wanted. Raises UserError for another dtype or architecture, TypeError for an argument that the network does not
    have.
    """
    dtype = arguments.get("dtype", "float32")
    if dtype not in DTYPES:
        raise UserError(f"The {name} cannot compute in {dtype!r}; dtype can be {' or '.join(DTYPES)}.")
    if name == "autoencoder":
        arguments = dict(arguments)
        architecture = arguments.pop("architecture", "kl")
        if architecture not in AUTOENCODERS:
            raise UserError(
                f"The autoencoder's architecture is {architecture!r}; it can be {' or '.join(AUTOENCODERS)}."
            )
        network = AUTOENCODERS[architecture]
    else:
        network = NETWORKS[name]
    hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return network(**{**hashable, "dtype": jnp.dtype(dtype), "conv_route": conv_route(num_devices)})


def autoencoder_halvings(arguments: Mapping[str, Any]) -> int:
    """How many times the autoencoder of these constructor arguments halves each side."""
    return build("autoencoder", arguments, num_devices=1).halvings
