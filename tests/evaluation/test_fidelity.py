"""What validation says of reconstructions beside the mean error: similarity, sharpness, ventricles."""

import numpy as np
import pytest
from scipy import ndimage

from brainldm.evaluation.fidelity import RESCAN_MS_SSIM, SCANS, fidelity, nearer_than_a_rescan
from brainldm.population.population import population_of
from brainldm.training.flags import load_config
from brainldm.training.stage import mesh_of
from brainldm.training.stage_autoencoder import AutoencoderStage
from brainldm.volumes.grids import training_grid


@pytest.fixture(scope="module")
def brains():
    return [population_of(4).make(5, index).image for index in range(2)]


def test_a_perfect_reconstruction_has_the_best_figures(brains):
    assert fidelity(brains, brains, training_grid(4)) == pytest.approx(
        {"ms_ssim": 1, "high_frequencies": 1, "ventricles_ml": 0}, abs=1e-6
    )


def test_blur_and_other_ventricles_show(brains):
    blurred = [ndimage.gaussian_filter(brain, 0.7) for brain in brains]
    figures = fidelity(brains, blurred, training_grid(4))
    assert figures["ms_ssim"] < 0.99 and figures["high_frequencies"] < 0.5
    one = population_of(4).make(5, 0)
    asked = one.covariates["ventricles_ml"] + 30
    wider = population_of(4).make(5, 0, ventricles_ml=asked)
    found = fidelity([one.image], [wider.image], training_grid(4))["ventricles_ml"]
    assert found == pytest.approx(wider.covariates["ventricles_ml"] - one.covariates["ventricles_ml"], rel=0.2)


def test_no_brain_gives_no_ventricles_and_no_error(brains):
    figures = fidelity(brains[:1], [np.zeros_like(brains[0])], training_grid(4))
    assert set(figures) == {"ms_ssim", "high_frequencies"} and figures["high_frequencies"] == 0


@pytest.mark.parametrize("spacing", sorted(RESCAN_MS_SSIM))
def test_what_is_nearer_than_a_second_scan_is_said(spacing):
    limit = RESCAN_MS_SSIM[spacing]
    assert nearer_than_a_rescan({"ms_ssim": limit - 1e-4}, spacing) == ""
    assert f"two scans of one person have {limit:g} at {spacing} mm" in nearer_than_a_rescan(
        {"ms_ssim": limit + 1e-4}, spacing
    )


def test_a_run_looks_at_some_scans_and_says_it_once(brains, capsys):
    config = load_config("demo_autoencoder:tiny", {"data.path": "people"})
    stage = AutoencoderStage(config, mesh_of(config))
    looked_at = []

    def perfect(params, image):
        looked_at.append(len(image))
        return image[..., 0], image[..., 0]

    stage.__dict__["_pairs"] = perfect  # the program that reconstructs
    state = type("State", (), {"params": None})
    source = [{"image": brains[number % 2][..., None]} for number in range(SCANS + 5)]
    for _ in range(2):
        assert stage.fidelity(source, state).scalars["ms_ssim"] == pytest.approx(1)
    assert capsys.readouterr().err.count("two scans of one person") == 1
    assert sum(looked_at) == 2 * SCANS
