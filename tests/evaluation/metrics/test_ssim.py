"""MS-SSIM against MONAI's numbers, and the choice of scales."""

import json

import numpy as np
import pytest

from brainldm.evaluation.metrics.ssim import ms_ssim, scales_for, ssim


@pytest.fixture(scope="module")
def pair(shared):
    with np.load(shared / "golden" / "metrics.npz") as arrays:
        a, b = (np.squeeze(arrays[k]).astype(np.float32) / 255 for k in ("a", "b"))
    return a, b, json.loads((shared / "golden" / "spec.json").read_text())["metrics"]


def test_matches_monai(pair):
    a, b, expected = pair
    assert ssim(a, b) == pytest.approx(expected["ssim_win7"], abs=1e-4)
    assert scales_for(a.shape) == 5
    assert ms_ssim(a, b) == pytest.approx(expected["ms_ssim_kernel7"], abs=1e-4)
    assert ms_ssim(a[..., None], b[..., None]) == ms_ssim(a, b)


def test_scales_follow_the_grid():
    assert [scales_for(s) for s in ((160, 224, 160), (80, 112, 80), (40, 56, 40))] == [5, 4, 3]
    with pytest.raises(ValueError, match="does not fit"):
        scales_for((6, 56, 40))
    with pytest.raises(ValueError, match="allows 1 to 3"):
        ms_ssim(np.zeros((40, 56, 40)), np.zeros((40, 56, 40)), scales=4)
    with pytest.raises(ValueError, match="differ in shape"):
        ms_ssim(np.zeros((40, 56, 40)), np.zeros((40, 56, 41)))


def test_small_grid_identity_and_order():
    rng = np.random.default_rng(0)
    a = rng.random((40, 56, 40), np.float32)
    assert ms_ssim(a, a) == pytest.approx(1.0, abs=1e-5)
    near, far = (ms_ssim(a, a + s * rng.standard_normal(a.shape).astype(np.float32)) for s in (0.05, 0.3))
    assert 1 > near > far > 0
    # One scale with a weight of one is plain SSIM, luminance included.
    assert ms_ssim(a, a + 0.2, scales=1) == pytest.approx(ssim(a, a + 0.2))
