"""The networks in whose features sets of brains are compared, each with its name and the hash of its weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.models.features.medicalnet import load_medicalnet, pooled_features
from brainldm.models.features.random_cnn import FEATURES, random_features, random_kernels
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256
from brainldm.weights.brain_age_folder import BrainAgeModel
from brainldm.weights.torch_file import read_torch_state_dict

PUBLISHED = {"ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e": "resnet_50_23dataset"}
"""Med3D checkpoints by the SHA-256 of their file, as far as it is publicly known."""
BATCH = 4


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network: `compute` turns volumes [B, D, H, W, 1] in [0, 1] into vectors [B, `features`].

    `distance` is what a Frechet distance on these features may be called: "FID (Med3D ...)" for Med3D alone, whose
    features the paper's FID is taken on. `sha256` is that of the weights' file, or of the weights themselves.
    """

    name: str
    distance: str
    sha256: str
    features: int
    compute: Callable[[jax.Array], jax.Array]
    input: str = "each volume z-scored, zeros included"


def med3d_network(path: str | Path) -> FeatureNetwork:
    """The Med3D network of a checkpoint file (see `brainldm.models.features.medicalnet`).

    Raises UserError when it cannot be read or is none.
    """
    params, depth = load_medicalnet(read_torch_state_dict(path))
    digest = file_sha256(Path(path))
    known = PUBLISHED.get(digest, "weights of unknown origin")
    compute = jax.jit(lambda x: pooled_features(params, x))
    return FeatureNetwork(
        f"Med3D ResNet-{depth} ({known})", f"FID (Med3D ResNet-{depth})", digest, 2048 if depth == 50 else 512, compute
    )


def random_network(seed: int = 0) -> FeatureNetwork:
    """The frozen network with random weights, which needs no file."""
    kernels = random_kernels(seed)
    digest = hashlib.sha256(b"".join(np.asarray(kernel).tobytes() for kernel in kernels)).hexdigest()
    compute = jax.jit(lambda x: random_features(kernels, x))
    return FeatureNetwork(
        f"random 3D CNN (seed {seed})", f"Frechet distance (random 3D CNN, seed {seed})", digest, FEATURES, compute
    )


def feature_network(med3d: str | Path | None) -> FeatureNetwork:
    """That of the checkpoint `med3d` where one is named, else the random one."""
    return med3d_network(med3d) if med3d else random_network()


def brain_age_network(model: BrainAgeModel) -> FeatureNetwork:
    """The features of a brain-age network. `compute` gives the age in years before them: [B, 1 + `features`]."""

    @jax.jit
    def compute(image: jax.Array) -> jax.Array:
        age, features = model.tell(image)
        return jnp.concatenate([age[:, None], features], axis=-1)

    name = f"brain-age network {model.sha256[:12]}"
    width = model.spec.network["channels"][-1]
    return FeatureNetwork(name, f"Frechet distance ({name})", model.sha256, width, compute, "each volume in [0, 1]")


def vectors_of(
    volumes: Sequence[np.ndarray], network: FeatureNetwork, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """The features [N, D] of volumes [D, H, W], read one batch at a time; `progress` is told how many were done.

    Raises UserError when a volume gives features that are not finite.
    """
    found = []
    for start in range(0, len(volumes), BATCH):
        some = [np.asarray(volumes[i], np.float32) for i in range(start, min(start + BATCH, len(volumes)))]
        # One program of one shape: the last batch is filled up.
        filled = np.stack(some + some[-1:] * (min(BATCH, len(volumes)) - len(some)))
        vectors = np.asarray(network.compute(jnp.asarray(filled)[..., None]))[: len(some)]
        if not np.isfinite(vectors).all():
            raise UserError(
                f"{network.name}: image {start + int(np.argmin(np.isfinite(vectors).all(1))) + 1} of a dataset gives "
                "features that are not finite. Look at that image, and at the weights."
            )
        found.append(vectors)
        if progress is not None:
            progress(len(some))
    return np.concatenate(found) if found else np.zeros((0, network.features), np.float32)
