"""Which perceptual distance an autoencoder run uses, and where its weights come from.

The weights of the perceptual networks cannot be shipped, so the config names the files. A run that asks for a
network and does not name its files stops; it never trains without what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from brainldm.errors import UserError
from brainldm.models.lpips import load_lpips_squeeze, lpips_2p5d
from brainldm.models.medicalnet import load_medicalnet, perceptual_distance
from brainldm.weights.torch_file import read_torch_state_dict

KINDS = ("lpips", "medicalnet", "discriminator", "none")

# (parameters, reconstruction [B, D, H, W, 1], image, key) -> scalar
Distance = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def make_perceptual(kind: str, files: tuple[str, ...], ratio: float) -> tuple[Distance | None, Any]:
    """The distance function of `kind` and its parameters.

    "discriminator" (feature matching) and "none" need neither and give (None, None). Raises UserError for an
    unknown kind and for a network whose weight files are not named or do not fit.
    """
    if kind not in KINDS:
        raise UserError(f"config.loss.perceptual is {kind!r}; it can be {', '.join(KINDS)}.")
    if kind in ("discriminator", "none"):
        return None, None
    if not files:
        wanted = {
            "lpips": "the state dicts of torchvision's squeezenet1_1 and of LPIPS's squeeze heads",
            "medicalnet": "a MedicalNet checkpoint (resnet_10 or resnet_50, 23 datasets)",
        }[kind]
        raise UserError(
            f"config.loss.perceptual is {kind!r} but config.loss.perceptual_files is empty. Its weights cannot be "
            f"shipped with brainldm: name {wanted}, or choose 'discriminator' (feature matching), which needs none."
        )
    tensors: dict[str, Any] = {}
    for file in files:
        tensors.update(read_torch_state_dict(file))
    if kind == "lpips":
        params = load_lpips_squeeze(tensors)
        return lambda p, x, y, key: jnp.mean(lpips_2p5d(p, x, y, key, ratio)), params
    params = load_medicalnet(tensors)[0]
    return lambda p, x, y, key: jnp.mean(perceptual_distance(p, x, y)), params


def feature_matching(fake: list[jax.Array], real: list[jax.Array]) -> jax.Array:
    """Mean absolute difference of the discriminator's hidden features, averaged over layers.

    Wang et al. 2018 (pix2pixHD, eq. 3); the logits are left out and the real features are constants.
    """
    differences = [
        jnp.mean(jnp.abs(f.astype(jnp.float32) - jax.lax.stop_gradient(r).astype(jnp.float32)))
        for f, r in zip(fake[:-1], real[:-1], strict=True)
    ]
    return sum(differences) / len(differences)
