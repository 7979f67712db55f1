"""Nothing but zeros around a brain that was drawn by a model of stripped scans."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from brainldm.generation.background import clear_background
from brainldm.generation.regenerate import units_apart
from brainldm.generation.sampler import finished, make_sampler
from brainldm.population.population import Population
from brainldm.runtime.errors import UserError
from brainldm.weights.model_folder import ModelSpec, load_model


@pytest.fixture(scope="module", params=[4, 2])
def brain(request):
    """Someone with wide ventricles: dark, and not to be taken for background."""
    image = Population(request.param).make(seed=5, index=1, ventricles_ml=90).image
    return image / image.max()


def hazy(brain, random):
    """As decoders leave it: a smooth haze everywhere, a spot far from the brain, a blurred outline."""
    haze = np.abs(ndimage.gaussian_filter(random.normal(size=brain.shape), 3))
    volume = np.clip(ndimage.gaussian_filter(brain, 0.5) + 0.004 * haze / haze.std(), 0, 1).astype(np.float32)
    volume[2:4, 2:4, -4:-2] = 0.4
    return volume


def test_the_haze_goes_and_the_brain_stays_as_it_is(brain, random):
    volume = hazy(brain, random)
    assert (volume == 0).mean() < 0.01
    cleared = clear_background(volume)
    assert cleared.dtype == np.float32
    inside = cleared > 0
    np.testing.assert_array_equal(cleared[inside], volume[inside])
    assert not cleared[:5, :5, -6:].any()
    assert inside[brain > 0.1].mean() > 0.9999
    # A voxel around the brain stays: its outline is blurred.
    around = ndimage.binary_dilation(brain > 0, iterations=2)
    assert (cleared[~around] > 0).mean() < 1e-3
    assert (brain == 0).mean() - 0.08 < (cleared == 0).mean() <= (brain == 0).mean()


def test_ventricles_are_inside(brain, random):
    filled = ndimage.binary_fill_holes(brain > 0.03)
    dark = filled & (ndimage.uniform_filter(brain, 3) < 0.2) & ndimage.binary_erosion(filled, iterations=3)
    volume = hazy(brain, random)
    volume[dark] = 0.02  # darker than any fluid
    np.testing.assert_array_equal(clear_background(volume)[dark], volume[dark])


def test_a_volume_without_tissue_stays_as_it_is():
    volume = np.full((8, 8, 8), 0.01, np.float32)
    np.testing.assert_array_equal(clear_background(volume), volume)


def test_models_of_stripped_scans_know_it_and_others_give_what_they_decode(demo_run):
    model = load_model(demo_run / "model")
    assert model.spec.zero_background
    assert ModelSpec.from_json(model.spec.to_json()).zero_background
    raw = make_sampler(model, model.spec.sampling, batch_size=1, finish=False)
    conditions = np.full((1, model.spec.covariates.width), 0.5)
    volume = raw(0, np.zeros(1), conditions)[0]
    np.testing.assert_array_equal(finished(model.spec, volume), clear_background(volume))
    whole_heads = dataclasses.replace(model.spec, zero_background=False)
    assert finished(whole_heads, volume) is volume
    assert "zero_background" not in whole_heads.to_json()
    with pytest.raises(UserError, match="zero_background is 1; true or false"):
        ModelSpec.from_json({**model.spec.to_json(), "zero_background": 1})


def test_a_few_voxels_of_the_outline_may_differ_between_machines_and_nothing_else():
    before = np.zeros((40, 40, 40), np.float32)
    before[10:30, 10:30, 10:30] = 0.5
    again = before.copy()
    again[10, 10, 10:14] = 0
    assert units_apart(before, again, cleared=True) == 0
    assert units_apart(before, again, cleared=False) > 16_000
    again[20, 20, 20] = 0.6
    assert units_apart(before, again, cleared=True) > 3_000
    again = before.copy()
    again[10, 10, 10:20] = 0  # 10 of 64,000
    assert units_apart(before, again, cleared=True) > 16_000
