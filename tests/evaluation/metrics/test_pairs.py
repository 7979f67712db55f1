"""Which pairs of volumes are compared, and what comes of them."""

import math

import numpy as np
import pytest

from brainldm.evaluation.metrics.gradient_ssim import gradient_ssim
from brainldm.evaluation.metrics.pairs import BATCH, draw_pairs, pairwise_gradient_ssim, pairwise_ms_ssim
from brainldm.evaluation.metrics.ssim import ms_ssim


def test_pairs_are_distinct_and_repeatable():
    assert draw_pairs(4, 100, 0) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    drawn = draw_pairs(50, 200, 3)
    assert len(set(drawn)) == 200 and all(0 <= i < j < 50 for i, j in drawn)
    assert drawn == draw_pairs(50, 200, 3) != draw_pairs(50, 200, 4)
    assert draw_pairs(0, 5, 0) == draw_pairs(1, 5, 0) == []


def test_pairwise_mean():
    rng = np.random.default_rng(1)
    volumes = [rng.random((16, 16, 16), np.float32) for _ in range(3)]
    compared = []
    result = pairwise_ms_ssim(volumes, max_pairs=10, progress=compared.append)
    assert sum(compared) == 3
    values = [ms_ssim(volumes[i], volumes[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(values) - 1e-6 <= result.low <= result.mean <= result.high <= max(values) + 1e-6
    assert result.mean == pytest.approx(np.mean(values)) and result.sd == pytest.approx(np.std(values, ddof=1))
    assert (result.pairs, result.volumes, result.scales) == (3, 3, 2)
    assert np.isnan(pairwise_ms_ssim(volumes[:1]).mean)


def test_pairs_beyond_one_batch_are_all_compared():
    rng = np.random.default_rng(2)
    volumes = [rng.random((16, 16, 16), np.float32) for _ in range(BATCH)]
    drawn = draw_pairs(BATCH, BATCH + 3, seed=1)
    result = pairwise_gradient_ssim(volumes, BATCH + 3, seed=1)
    assert result.pairs == len(drawn) == BATCH + 3
    assert result.mean == pytest.approx(np.mean([gradient_ssim(volumes[i], volumes[j]) for i, j in drawn]), rel=1e-5)
    assert result == pairwise_gradient_ssim(volumes, BATCH + 3, seed=1)


def test_one_volume_has_no_pairs():
    result = pairwise_ms_ssim([np.zeros((16, 16, 16))])
    assert result.pairs == 0 and math.isnan(result.mean) and math.isnan(result.sd)
    assert pairwise_gradient_ssim([]).volumes == 0
