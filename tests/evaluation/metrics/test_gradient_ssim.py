"""4-G-SSIM against the numbers of the public implementation, its symmetry and its bounds."""

import json

import numpy as np
import pytest

from brainldm.evaluation.metrics.gradient_ssim import gradient_ssim, scales_for_gradients


@pytest.fixture(scope="module")
def pair(shared):
    with np.load(shared / "golden" / "metrics.npz") as arrays:
        a, b = (np.squeeze(arrays[k]).astype(np.float32) / 255 for k in ("a", "b"))
    return a, b, json.loads((shared / "golden" / "spec.json").read_text())["metrics"]["4gr_ssim"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("single_scale_kernel7", {}),
        ("multi_scale_kernel7", {"scales": 5}),
        ("single_scale_kernel11_star", {"kernel_size": 11, "starred": True}),
    ],
)
def test_matches_the_public_implementation(pair, kind, settings):
    a, b, expected = pair
    assert gradient_ssim(a, b, **settings) == pytest.approx(expected[kind]["a,b"], abs=1e-4)
    assert gradient_ssim(b, a, **settings) == pytest.approx(expected[kind]["b,a"], abs=1e-4)
    assert gradient_ssim(a, a, **settings) == pytest.approx(expected[kind]["a,a"], abs=1e-4)


def test_flat_volumes_are_alike_and_no_nan():
    flat = np.zeros((16, 16, 16))
    assert gradient_ssim(flat, flat) == pytest.approx(1)
    assert gradient_ssim(flat, flat, starred=True) == pytest.approx(1)
    assert 0 <= gradient_ssim(flat, np.random.default_rng(0).random((16, 16, 16))) < 0.1


def test_scales_leave_room_for_the_gradient():
    sides = ((160, 224, 160), (144, 160, 144), (80, 112, 80), (40, 56, 40))
    assert [scales_for_gradients(s) for s in sides] == [5, 5, 4, 3]
    with pytest.raises(ValueError, match="does not fit the gradients"):
        scales_for_gradients((8, 56, 40))
    with pytest.raises(ValueError, match="allows 1 to 3"):
        gradient_ssim(np.zeros((40, 56, 40)), np.zeros((40, 56, 40)), scales=4)
    with pytest.raises(ValueError, match="differ in shape"):
        gradient_ssim(np.zeros((40, 56, 40)), np.zeros((40, 56, 41)))
