"""Model folders of tiny networks with random numbers, for tests of everything but what a model has learnt."""

from pathlib import Path

import jax
import ml_collections
import numpy as np

from brainldm.diffusion.sampling import Sampling
from brainldm.training.config import covariates_of
from brainldm.training.diffusion import unet_arguments
from brainldm.volumes.grids import training_grid
from brainldm.weights.model_folder import ModelSpec, autoencoder_shapes, save_model, unet_shapes


def save_random_model(
    folder: Path,
    autoencoder: ml_collections.ConfigDict,
    diffusion: ml_collections.ConfigDict,
    latent_scale: float = 1.0,
) -> Path:
    """A model folder of the networks that the configs of two stages describe; returns it."""
    networks = autoencoder.model.to_dict()
    covariates = covariates_of(diffusion)
    spec = ModelSpec(
        autoencoder=networks,
        unet=unet_arguments(diffusion, networks["latent_channels"], covariates.width),
        schedule=diffusion.schedule.to_dict(),
        prediction=diffusion.loss.prediction,
        latent_scale=latent_scale,
        sampling=Sampling(1, guidance=2.0),
        grid=training_grid(diffusion.data.spacing_mm),
        covariates=covariates,
        provenance={},
    )
    rng = np.random.default_rng(0)

    def numbers(shapes):
        return jax.tree.map(lambda s: (0.1 * rng.standard_normal(s.shape)).astype(np.float32), shapes)

    trees = (
        numbers(autoencoder_shapes(spec.make_autoencoder(), spec.grid)),
        numbers(unet_shapes(spec.make_unet(), spec.latent_shape, covariates.width)),
    )
    save_model(folder, spec, *trees, "card")
    return folder
