"""The steps around MeshNet, and the whole on a real brain against its labels."""

import numpy as np
import pytest

from brainldm.evaluation.measures import meshnet
from brainldm.evaluation.measures.backend import Image
from brainldm.evaluation.measures.meshnet import MeshNetSegmenter
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import Grid


def test_axes_are_those_of_a_conformed_volume():
    data = np.arange(24).reshape(2, 3, 4)
    conformed = meshnet.to_conformed(data)
    # the first axis runs to the left, the second down, the third to the front
    assert conformed.shape == (2, 4, 3) and conformed[0, 0, 2] == data[1, 2, 3] and conformed[1, 3, 0] == data[0, 0, 0]
    assert np.array_equal(meshnet.from_conformed(conformed), data)


def test_intensities_are_scaled_as_in_a_cube_of_256_voxels():
    data = np.zeros((80, 80, 80), np.float32)
    data.ravel()[:400_000] = np.linspace(1, 2, 400_000)
    found = meshnet.rescale(data)
    cube = np.zeros(256**3, np.float32)
    cube[: data.size] = data.ravel()
    high = np.quantile(cube, 0.98)
    np.testing.assert_allclose(found, np.clip(data / high, 0, 1), rtol=1e-4)
    assert not meshnet.rescale(np.zeros((3, 3, 3))).any()


def test_box_holds_the_brain_and_does_not_change_shape_with_it():
    data = np.zeros((160, 224, 160), np.float32)
    data[20:150, 30:200, 5:140] = 1
    cut, place = meshnet.cut_to_brain(data)
    assert cut.sum() == data.sum() and all(side % 32 == 0 for side in cut.shape)
    again = np.zeros_like(data)
    meshnet.paste(cut, place, again)
    assert np.array_equal(again, data)
    smaller = np.zeros_like(data)
    smaller[22:150, 33:200, 8:140] = 1
    assert meshnet.cut_to_brain(smaller)[0].shape == cut.shape


def test_another_number_of_classes_is_refused(shared):
    with pytest.raises(UserError, match="3 classes"):
        MeshNetSegmenter(shared / "data" / "meshnet" / "model5_gw_ae")


def test_an_empty_image_gives_a_reason(shared):
    backend = MeshNetSegmenter(shared / "data" / "meshnet" / "model30chan18cls")
    found = backend(Image(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4))), labels=True)
    assert "no brain found" in found.reason and not found.labels.any()
    assert set(found.volumes_ml) == set(backend.columns)
