"""Random changes of training volumes: what they do, how far they go, and that they depend on the generator alone."""

import numpy as np
import pytest
from scipy import ndimage

from brainldm.data.augmentation import Augmentation
from brainldm.runtime.errors import UserError

SHAPE = (20, 28, 24)


@pytest.fixture(scope="module")
def image():
    """A smooth blob off the centre in [0, 1], 0 at the rim."""
    data = np.zeros(SHAPE, np.float32)
    data[8:12, 12:20, 9:14] = 1
    data = ndimage.gaussian_filter(data, 2)
    return data / data.max()


def centre(data):
    return np.array(ndimage.center_of_mass(data))


def rng(index=0):
    return np.random.default_rng([7, index])


def test_nothing_is_changed_by_default(image):
    plain = Augmentation()
    assert not plain.active
    np.testing.assert_array_equal(plain(image, rng(), 1), image)


def test_a_change_depends_on_the_generator_alone_and_leaves_its_input(image):
    everything = Augmentation(0.5, 1, 5, 2, 0.05, 1, 0.1, 1, (0.8, 1.2))
    before = image.copy()
    one, two, other = everything(image, rng(), 1), everything(image, rng(), 1), everything(image, rng(1), 1)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(image, before)
    assert np.abs(one - other).max() > 0.01
    assert one.dtype == np.float32 and one.flags.c_contiguous and one.shape == SHAPE


def test_values_stay_between_zero_and_one(image):
    everything = Augmentation(0.5, 1, 10, 3, 0.1, 1, 0.5, 1, (0.5, 2))
    for index in range(20):
        changed = everything(image, rng(index), 1)
        assert changed.min() >= 0 and changed.max() <= 1 and np.isfinite(changed).all()


def test_shifts_are_in_millimetres_and_reach_their_limit_only(image):
    move = Augmentation(affine_probability=1, translation_mm=4, scale=0)
    found = np.array([centre(move(image, rng(i), 2.0)) - centre(image) for i in range(40)])
    assert np.abs(found).max() <= 2.01  # 4 mm are two voxels of 2 mm
    assert np.abs(found).max(axis=0).min() > 1.4 and found.min() < -1.4


def test_scaling_is_about_the_centre_of_the_volume():
    data = np.zeros((21, 21, 21), np.float32)
    data[5, 10, 10] = data[15, 10, 10] = 1
    data = ndimage.gaussian_filter(data, 1)
    grow = Augmentation(affine_probability=1, translation_mm=0, scale=0.2)
    changed = [grow(data, rng(i), 1) for i in range(20)]
    apart = [centre(c[11:])[0] + 11 - centre(c[:10])[0] for c in changed]
    assert 8 <= min(apart) < 9 and 11 < max(apart) <= 12
    np.testing.assert_allclose([centre(c) for c in changed], 10, atol=0.02)


def test_rotation_turns_about_the_centre_by_at_most_the_angle():
    data = np.zeros((31, 31, 31), np.float32)
    data[27, 15, 15] = 1
    data = ndimage.gaussian_filter(data, 1.0)
    turn = Augmentation(affine_probability=1, rotation_degrees=20, translation_mm=0, scale=0)
    arms = np.array([centre(turn(data, rng(i), 1)) - 15 for i in range(20)])
    # around x the arm does not move; around y and z by up to 20 degrees each
    np.testing.assert_allclose(np.linalg.norm(arms, axis=1), 12, atol=0.1)
    for axis in (1, 2):
        angles = np.rad2deg(np.arctan2(arms[:, axis], arms[:, 0]))
        assert 10 < np.abs(angles).max() <= 21.5


def test_the_two_ways_of_resampling_agree(image):
    straight = Augmentation(affine_probability=1, translation_mm=2, scale=0.1)
    turned = Augmentation(affine_probability=1, rotation_degrees=1e-7, translation_mm=2, scale=0.1)
    np.testing.assert_allclose(straight(image, rng(), 1), turned(image, rng(), 1), atol=1e-5)


def test_intensity_shift_and_contrast(image):
    brighter = [Augmentation(shift_probability=1, shift=0.1)(image, rng(i), 1) for i in range(20)]
    changes = np.array([np.median((b - image)[(image > 0.2) & (image < 0.8)]) for b in brighter])
    assert np.abs(changes).max() <= 0.1 + 1e-6 and changes.min() < -0.05 and changes.max() > 0.05
    curve = Augmentation(contrast_probability=1, gamma=(2.0, 2.0))(image, rng(), 1)
    np.testing.assert_allclose(curve, image**2, atol=1e-6)
    flat = np.full(SHAPE, 0.3, np.float32)
    np.testing.assert_array_equal(Augmentation(contrast_probability=1)(flat, rng(), 1), flat)


def test_flips_only_left_and_right(image):
    np.testing.assert_array_equal(Augmentation(flip_probability=1)(image, rng(), 1), image[::-1])


def test_probabilities_are_kept_and_switches_do_not_move_each_other(image):
    often = Augmentation(shift_probability=0.3)
    changed = np.mean([not np.array_equal(often(image, rng(i), 1), image) for i in range(400)])
    assert 0.22 < changed < 0.38
    both = Augmentation(affine_probability=1, flip_probability=1)
    flipped = Augmentation(affine_probability=1)(np.ascontiguousarray(image[::-1]), rng(), 1)
    np.testing.assert_array_equal(both(image, rng(), 1), flipped)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ({"scale": -0.1}, "scale is -0.1"),
        ({"gamma": (1.2, 0.8)}, "gamma"),
        ({"gamma": (0.0, 1.0)}, "gamma"),
        ({"rotation_degrees": 400}, "rotation_degrees"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(UserError, match=f"config.data.augment.{said}"):
        Augmentation(**options)
