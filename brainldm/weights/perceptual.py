"""Which perceptual distance an autoencoder run uses, and where its weights come from.

The weights of the perceptual networks cannot be shipped, so the config names the files. A run that asks for a
network and does not name its files stops; it never trains without what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.models.features.lpips import expected_shapes as lpips_shapes
from brainldm.models.features.lpips import load_lpips_squeeze, lpips_2p5d
from brainldm.models.features.medicalnet import expected_shapes as medicalnet_shapes
from brainldm.models.features.medicalnet import load_medicalnet, perceptual_distance
from brainldm.runtime.errors import UserError
from brainldm.weights.torch_file import read_torch_state_dict

KINDS = ("lpips", "medicalnet", "discriminator", "none")

# (parameters, reconstruction [B, D, H, W, 1], image, key) -> scalar
Distance = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def perceptual_distance_of(kind: str, ratio: float) -> Distance | None:
    """The distance function of `kind`, which takes the network's parameters as its first argument.

    None for "discriminator" (feature matching) and "none", which need no network. Raises UserError for an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"config.loss.perceptual is {kind!r}; it can be {', '.join(KINDS)}.")
    if kind in ("discriminator", "none"):
        return None
    if kind == "lpips":
        return lambda p, x, y, key: jnp.mean(lpips_2p5d(p, x, y, key, ratio))
    return lambda p, x, y, key: jnp.mean(perceptual_distance(p, x, y))


def load_perceptual(kind: str, files: tuple[str, ...]) -> Any:
    """The parameters of the network of `kind`, None for a kind without one.

    Raises UserError for a network whose weight files are not named or do not fit.
    """
    if kind in ("discriminator", "none"):
        return None
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
    return load_lpips_squeeze(tensors) if kind == "lpips" else load_medicalnet(tensors)[0]


def perceptual_shapes(kind: str) -> Any:
    """The shapes of what `load_perceptual` gives, for which no files are needed ("medicalnet": of resnet_10)."""
    if kind in ("discriminator", "none"):
        return None
    shapes = lpips_shapes() if kind == "lpips" else medicalnet_shapes(10)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    params = load_lpips_squeeze(zeros) if kind == "lpips" else load_medicalnet(zeros)[0]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def feature_matching(fake: list[jax.Array], real: list[jax.Array]) -> jax.Array:
    """Mean absolute difference of the discriminator's hidden features, averaged over layers.

    Wang et al. 2018 (pix2pixHD, eq. 3); the logits are left out and the real features are constants.
    """
    differences = [
        jnp.mean(jnp.abs(f.astype(jnp.float32) - jax.lax.stop_gradient(r).astype(jnp.float32)))
        for f, r in zip(fake[:-1], real[:-1], strict=True)
    ]
    return sum(differences) / len(differences)
