"""How near reconstructions come to their scans, in figures that a mean error of voxels hides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from brainldm.evaluation.measures.volumetry import measure
from brainldm.evaluation.metrics.spectrum import high_frequency_share, radial_power_spectrum
from brainldm.evaluation.metrics.ssim import ms_ssim
from brainldm.volumes.grids import Grid

SCANS = 8
"""Held-out scans that are looked at, at most."""

RESCAN_MS_SSIM = {1: 0.995, 2: 0.997, 4: 0.998}
"""MS-SSIM of two scans of one person, by spacing in mm: the mean of four people scanned twice (skull-stripped T1w, both
brought to the template; 0.991 to 0.997 at 1 mm, 0.996 to 0.999 at 4 mm)."""


def fidelity(images: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], grid: Grid) -> dict[str, float]:
    """Means over pairs of volumes [D, H, W] in 0..1 on `grid`, at least one:

    ms_ssim           multi-scale structural similarity (Wang et al. 2003), 1 for the same volume
    high_frequencies  share of the power spectrum above half of the highest frequency, over that of the scan: 1 is as
                      sharp, less is blurred
    ventricles_ml     absolute difference of the lateral ventricles, in mL, by the measure without trained weights;
                      absent where it finds a brain in no pair
    """
    similar = [ms_ssim(image, made) for image, made in zip(images, reconstructions, strict=True)]
    spacing = float(grid.spacing_mm[0])
    shares = [
        [high_frequency_share(*radial_power_spectrum(volume, spacing)) for volume in pair]
        for pair in zip(images, reconstructions, strict=True)
    ]
    # As of people: a constant, which goes out of a difference and keeps small ventricles from being cut off at 0.
    volumes = [
        [measure(volume, grid, people=True).ventricles_ml for volume in pair]
        for pair in zip(images, reconstructions, strict=True)
    ]
    apart = [abs(made - real) for real, made in volumes if math.isfinite(made - real)]
    found = {
        "ms_ssim": float(np.mean(similar)),
        # Nothing at all, as of a flat volume, has no share: none of the detail is there.
        "high_frequencies": float(np.mean([0.0 if math.isnan(made) else made / real for real, made in shares])),
    }
    return {**found, "ventricles_ml": float(np.mean(apart))} if apart else found


def nearer_than_a_rescan(figures: dict[str, float], spacing_mm: int) -> str:
    """What to say of reconstructions that are nearer to their scans than two scans of one person are, else ""."""
    limit = RESCAN_MS_SSIM[int(spacing_mm)]
    if figures["ms_ssim"] < limit:
        return ""
    return (
        f"Reconstructions of held-out scans have an MS-SSIM of {figures['ms_ssim']:.4f} with them; two scans of one "
        f"person have {limit:g} at {spacing_mm} mm. What the autoencoder still gets better at is the noise of single "
        "scans: stage two can begin with it."
    )
