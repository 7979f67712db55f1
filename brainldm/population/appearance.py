"""From one person's tissues to a T1w image: contrast, its change with age, texture, bias field, noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainldm.population.anatomy import NODES, Anatomy, Tissues
from brainldm.population.deformation import random_field

REFERENCE_AGE = 63.0


def tissue_means(age: float) -> tuple[float, float, float]:
    """Mean intensities of CSF, grey and white matter at `age` (years).

    White matter darkens and grey matter brightens relative to it, so their contrast falls by a quarter from
    44 to 82 years; that it falls is known of T1w images (Salat et al. 2009, NeuroImage 48:21-28).
    """
    decades = (age - REFERENCE_AGE) / 10
    return 0.18, 0.600 + 0.013 * decades, 0.885 - 0.012 * decades


def render_image(
    rng: np.random.Generator, anatomy: Anatomy, tissues: Tissues, age: float, blur: float = 0.0
) -> np.ndarray:
    """The image [D, H, W] float32 in 0..1, exactly 0 outside the head.

    `blur` is the standard deviation, in voxels, of a Gaussian that stands for the point spread of a scanner, before
    the noise.

    With age, besides the contrast, the white matter next to the ventricles darkens (caps and rims) to a
    degree that differs between people.
    """
    csf, grey, white = np.asarray(tissue_means(age)) + rng.normal(0, (0.012, 0.009, 0.009))
    texture = 0.014 * random_field(rng, NODES, 0.6)
    fold = 0.030 * random_field(rng, NODES, 2.5)
    patches = random_field(rng, NODES, 1.2)
    bias = 0.035 * _bias_field(rng)
    burden = max(0.0, 0.05 + 0.055 * (age - REFERENCE_AGE) / 10) * np.exp(rng.normal(0, 0.3))
    gain = rng.normal(1, 0.015)
    noise = rng.uniform(0.01, 0.025)
    texture, fold, patches, bias = anatomy.at_points(np.concatenate([texture, fold, patches, bias]), tissues.blocks)
    grey_share = 1 - tissues.white
    intensity = grey + (white - grey) * tissues.white + 0.9 * tissues.residual + texture + fold * grey_share
    intensity -= np.float32(burden) * tissues.rim * np.clip(1 + patches, 0, 2)
    intensity = csf + (intensity - csf) * tissues.tissue
    image = anatomy.to_grid(intensity * tissues.head * np.exp(bias) * np.float32(gain), tissues.blocks)
    head = anatomy.to_grid(tissues.head, tissues.blocks)
    if blur:
        image = ndimage.gaussian_filter(image, blur)
    # the mean over a coarse voxel has the noise of a 1 mm image averaged
    sigma = np.float32(noise / np.sqrt(anatomy.grid.voxel_ml * 1000))
    real, imaginary = sigma * rng.standard_normal((2, *image.shape), dtype=np.float32)
    noisy = np.sqrt(np.square(image + real * head) + np.square(imaginary * head))
    return np.where(head > 0, np.clip(noisy, 0, 1), 0).astype(np.float32)


def _bias_field(rng: np.random.Generator) -> np.ndarray:
    """A field that varies over some 60 mm, standard deviation about 1, [1, *NODES]."""
    coarse_shape = tuple((n - 1) // 4 + 1 for n in NODES)
    coarse = random_field(rng, coarse_shape, 1.8)[0]
    return ndimage.zoom(coarse, np.divide(NODES, coarse_shape), order=1)[None]
