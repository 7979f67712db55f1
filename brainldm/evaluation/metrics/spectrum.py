"""How sharp brains are: the radial power spectrum of volumes, and its share of high frequencies.

Generated brains tend to be too smooth, which distances in feature space hardly see. The spectrum is that of the volume
under a Hann window along each axis, so that the borders of the box add nothing.
"""

from __future__ import annotations

import numpy as np


def radial_power_spectrum(volume: np.ndarray, spacing_mm: float, bins: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Mean power by frequency of a volume [D, H, W] (or [D, H, W, 1]), its mean removed.

    Returns `bins` frequencies in cycles per mm, up to the highest that voxels of `spacing_mm` hold, and the mean power
    of each band (the square of the intensity's unit, times a constant of the window).

    Raises:
        ValueError: for an array that is no volume.
    """
    volume = np.asarray(volume, np.float32)
    if volume.ndim == 4 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise ValueError(f"a volume is [D, H, W] or [D, H, W, 1], got an array of shape {volume.shape}")
    windowed = volume - volume.mean()
    for axis, side in enumerate(volume.shape):
        shape = [1, 1, 1]
        shape[axis] = side
        windowed = windowed * np.hanning(side).astype(np.float32).reshape(shape)
    power = np.abs(np.fft.rfftn(windowed)) ** 2 / volume.size
    axes = [np.fft.fftfreq(side, spacing_mm) for side in volume.shape[:2]] + [
        np.fft.rfftfreq(volume.shape[2], spacing_mm)
    ]
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    # The half spectrum holds all but the first and the last plane for two.
    twice = np.full(power.shape[2], 2.0)
    twice[0] = 1.0
    if volume.shape[2] % 2 == 0:
        twice[-1] = 1.0
    weights = np.broadcast_to(twice, power.shape)
    highest = 0.5 / spacing_mm
    band = np.minimum((radius / highest * bins).astype(int), bins)
    counts = np.bincount(band.ravel(), weights.ravel(), bins + 1)[:bins]
    sums = np.bincount(band.ravel(), (power * weights).ravel(), bins + 1)[:bins]
    return (np.arange(bins) + 0.5) * highest / bins, sums / np.maximum(counts, 1)


def high_frequency_share(frequencies: np.ndarray, power: np.ndarray, above: float = 0.5) -> float:
    """The share of the power in bands above `above` of the highest frequency, of all but the lowest band.

    Takes what `radial_power_spectrum` gives; NaN without power. Compared with the share of real brains on the same grid
    it says how much fine detail is missing.
    """
    total = power * frequencies**2  # of the shell
    all_but_first = total[1:].sum()
    return float(total[int(above * len(total)) :].sum() / all_but_first) if all_but_first > 0 else float("nan")
