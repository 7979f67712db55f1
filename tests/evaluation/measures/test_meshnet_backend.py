"""The steps around MeshNet, and the whole on a real brain against its labels."""

import json

import jax
import numpy as np
import pytest
from jax import lax

from brainldm.evaluation.measures import meshnet
from brainldm.evaluation.measures.backend import Image, column_of
from brainldm.evaluation.measures.meshnet import MeshNetSegmenter
from brainldm.evaluation.measures.one_mm import resample_to_1mm
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import Grid
from brainldm.volumes.nifti import block_average


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


def test_small_posteriors_count_as_none():
    posteriors = np.array([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [0.8, 0.1, 0.1]], np.float32)
    expected = [[0.625, 0.375, 0], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(meshnet.clean(posteriors), expected, atol=1e-6)


def write_model(folder, rng):
    """A model of 18 classes with two convolutions, as TensorFlow.js writes it; returns its arrays."""
    shapes = {"a/kernel": (3, 3, 3, 1, 4), "a/bias": (4,), "out/kernel": (1, 1, 1, 4, 18), "out/bias": (18,)}
    arrays = {name: rng.normal(0, 1, shape).astype("<f4") for name, shape in shapes.items()}
    layers = [
        {
            "class_name": "Conv3D",
            "config": {
                "name": name,
                "padding": "same",
                "strides": [1, 1, 1],
                "dilation_rate": [d] * 3,
                "activation": f,
            },
        }
        for name, d, f in (("a", 2, "elu"), ("out", 1, "linear"))
    ]
    weights = [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in arrays.items()]
    content = {
        "modelTopology": {"model_config": {"config": {"layers": layers}}},
        "weightsManifest": [{"paths": ["model.bin"], "weights": weights}],
    }
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "model.bin").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    return arrays


@pytest.mark.parametrize("spacing", [1, 2])
def test_backend_with_random_weights(tmp_path, monkeypatch, spacing):
    """Volumes and labels against the two convolutions written out, on axes turned by hand."""
    monkeypatch.setattr(meshnet, "_LEAST_ML", 0.1)
    monkeypatch.setattr(meshnet, "_CONFORMED_VOXELS", 64**3)
    rng = np.random.default_rng(4)
    arrays = write_model(tmp_path, rng)
    data = np.zeros((40, 40, 40), np.float32)
    data[5:33, 9:30, 4:36] = rng.random((28, 21, 32)) + 0.2
    data = block_average(data, spacing) if spacing > 1 else data
    backend = MeshNetSegmenter(tmp_path)
    assert len(backend.sha256) == 64
    found = backend(Image(data, Grid(data.shape, np.diag([spacing] * 3 + [1.0])), scale=0.9), labels=True)
    fine, _ = resample_to_1mm(data, np.full(3, float(spacing)))
    cut, place = meshnet.cut_to_brain(meshnet.rescale(fine))
    turned = np.flip(np.transpose(cut, (0, 2, 1)), (0, 1))
    hidden = lax.conv_general_dilated(
        turned[None, ..., None].copy(),
        arrays["a/kernel"],
        (1, 1, 1),
        [(2, 2)] * 3,
        rhs_dilation=(2, 2, 2),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    soft = jax.nn.softmax(jax.nn.elu(hidden + arrays["a/bias"]) @ arrays["out/kernel"][0, 0, 0] + arrays["out/bias"])[0]
    kept = np.where((soft > 0.2) | (np.arange(18) == 0), np.asarray(soft, float), 0)
    expected = (kept / kept.sum(-1, keepdims=True)).sum((0, 1, 2)) / 1000
    for index, name in enumerate(meshnet.STRUCTURES, start=1):
        assert found.volumes_ml[column_of(name)] == pytest.approx(expected[index], rel=1e-4)
    assert found.volumes_ml["ventricles_ml"] == pytest.approx(expected[3] + expected[4], rel=1e-4)
    tissue = expected[1:].sum() - expected[[3, 4, 11, 12]].sum()
    assert found.volumes_ml["tissue_ml"] == pytest.approx(tissue, rel=1e-4)
    assert found.volumes_ml["brain_ml"] == pytest.approx(tissue / 0.9**3, rel=1e-4)
    hard = np.transpose(np.flip(kept.argmax(-1), (0, 1)), (0, 2, 1))
    whole = np.zeros(fine.shape, int)
    meshnet.paste(hard, place, whole)
    assert np.mean(found.labels == whole[::spacing, ::spacing, ::spacing]) > 0.999 and found.labels.any()


def test_another_number_of_classes_is_refused(shared):
    with pytest.raises(UserError, match="3 classes"):
        MeshNetSegmenter(shared / "data" / "meshnet" / "model5_gw_ae")


def test_an_empty_image_gives_a_reason(shared):
    backend = MeshNetSegmenter(shared / "data" / "meshnet" / "model30chan18cls")
    found = backend(Image(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4))), labels=True)
    assert "no brain found" in found.reason and found.labels is None
    assert set(found.volumes_ml) == set(backend.columns)
