"""The spectrum of waves and noise, whose power is known."""

import math

import numpy as np
import pytest
from scipy import ndimage

from brainldm.evaluation.metrics.spectrum import high_frequency_share, radial_power_spectrum


def share(volume):
    return high_frequency_share(*radial_power_spectrum(volume, 4.0))


def test_a_wave_stands_at_its_frequency():
    x = np.arange(64) * 2.0  # mm
    wave = np.sin(2 * np.pi * 0.1 * x)[:, None, None] * np.ones((1, 48, 40))
    frequencies, power = radial_power_spectrum(wave, 2.0)
    assert frequencies[power.argmax()] == pytest.approx(0.1, abs=0.25 / 32)
    assert frequencies[-1] < 0.25


def test_noise_is_flat_whatever_the_order_of_axes():
    noise = np.random.default_rng(0).normal(size=(48, 41, 56))
    _, power = radial_power_spectrum(noise, 1.0)
    assert power[8:].max() / power[8:].min() < 1.3  # lower bands have few waves
    _, turned = radial_power_spectrum(noise.transpose(2, 0, 1)[..., None], 1.0)
    np.testing.assert_allclose(power, turned, rtol=1e-4)


def test_blurring_takes_high_frequencies_away():
    noise = np.random.default_rng(0).normal(size=(40, 56, 40))
    sharp, soft = share(noise), share(ndimage.gaussian_filter(noise, 1.0))
    assert 0.8 < sharp < 0.95 and soft < 0.2
    assert share(noise * 3 + 1) == pytest.approx(sharp, rel=1e-4)
    assert math.isnan(share(np.ones((8, 8, 8))))
    with pytest.raises(ValueError, match="a volume is"):
        radial_power_spectrum(np.ones((8, 8)), 1.0)
