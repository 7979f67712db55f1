"""Orientation, window and layout of the pictures."""

import numpy as np
import pytest

from brainldm.reports.mosaics import mosaic, slices, sweep_mosaic


def test_left_is_left_and_up_is_up():
    volume = np.zeros((8, 10, 12), np.float32)
    volume[1, 8, 6] = 1.0  # left, front, middle slice of z
    axial = slices(volume)[0]
    assert axial.shape == (10, 8) and np.argwhere(axial).tolist() == [[1, 1]]
    volume = np.zeros((8, 10, 12), np.float32)
    volume[1, 5, 11] = 1.0  # left, top
    assert np.argwhere(slices(volume)[1]).tolist() == [[0, 1]]
    volume = np.zeros((8, 10, 12), np.float32)
    volume[4, 9, 11] = 1.0  # front, top: sagittal shows the front on the right
    assert np.argwhere(slices(volume)[2]).tolist() == [[0, 9]]


def test_small_grids_are_magnified_and_rows_wrap():
    small = np.full((40, 56, 40), 0.5, np.float32)
    one = mosaic([("row", [small])])
    assert one.height > 3 * 160
    wrapped = mosaic([("row", [small] * 5)], columns=2)
    assert wrapped.width >= 2 * 224 and wrapped.width < 3 * 224
    assert wrapped.height > 3 * 3 * 160
    # Two brains of 56 voxels, four pixels each, and the gap between them.
    assert mosaic([("row", [small] * 4)]).width == 4 * 224 + 3 * 8 + 2 * 8


def test_fixed_window():
    def brightest(value):
        return np.asarray(mosaic([("", [np.full((56, 56, 56), value, np.float32)])]))[100, 100].tolist()

    assert brightest(0.5) == [128] * 3
    assert brightest(2.0) == [255] * 3 and brightest(-1.0) == [0] * 3 and brightest(np.nan) == [0] * 3


def test_captions_take_room_and_must_fit():
    volume = np.zeros((56, 56, 56), np.float32)
    plain, said = mosaic([("a", [volume])]), mosaic([("a", [volume])], [["70 y F, 40 mL"]])
    assert said.height > plain.height
    with pytest.raises(ValueError, match="captions"):
        mosaic([("a", [volume])], [["one", "two"]])
    with pytest.raises(ValueError, match="at least one volume"):
        mosaic([("a", [])])
    with pytest.raises(ValueError, match="a volume is"):
        mosaic([("a", [np.zeros((4, 4))])])


def test_sweep_is_one_row():
    volumes = [np.zeros((40, 56, 40, 1), np.float32)] * 10
    picture = sweep_mosaic("ventricles_ml", list(range(10, 110, 10)), volumes)
    assert picture.width >= 10 * 224
