"""Each step before and after SynthSeg's network by itself, and the whole with random weights of both layouts."""

import hashlib

import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator
from synthseg_weights import in_torch_names, network, random_weights, write_keras_h5
from torch_files import write_state_dict

from brainldm.evaluation.measures import one_mm, synthseg
from brainldm.evaluation.measures.backend import Image
from brainldm.evaluation.measures.synthseg import LABELS_1, LABELS_2, SynthSeg
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import Grid


def smooth_noise(shape, seed=0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2).astype(np.float32)


def test_resampling_as_the_authors_write_it():
    """Voxels of 0.5 x 2 x 0.98 mm: blurred along x alone, sampled at the places of 1 mm voxels, edges repeated."""
    data, spacing = smooth_noise((21, 8, 10)), np.array([0.5, 2.0, 0.98])
    found, size = one_mm.resample_to_1mm(data, spacing)
    sigmas = 0.25 / spacing
    sigmas[spacing > 1] = 0
    interpolate = RegularGridInterpolator([np.arange(n) for n in data.shape], ndimage.gaussian_filter(data, sigmas))
    places = [
        np.clip((1 / size - 1) / 2 + np.arange(np.ceil(side * size)) / size, 0, side - 1)
        for side, size in zip(data.shape, spacing, strict=True)
    ]
    expected = interpolate(np.stack(np.meshgrid(*places, indexing="ij"), -1))
    assert found.shape == expected.shape == (11, 16, 10) and np.array_equal(size, [1, 1, 1])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_voxels_near_1_mm_stay():
    data = smooth_noise((5, 6, 7))
    found, size = one_mm.resample_to_1mm(data, np.array([0.96, 1.0, 1.04]))
    assert found is data and np.array_equal(size, [0.96, 1.0, 1.04])


@pytest.mark.parametrize("spacing", [2.0, 0.5])
def test_labels_come_back_to_the_grid(spacing):
    """Blocks of four voxels, resampled as labels with 1 mm voxels, are the same blocks again."""
    labels = np.kron(np.arange(1, 9).reshape(2, 2, 2), np.ones((4, 4, 4))).astype(np.int16)
    fine = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2) if spacing == 2 else labels[::2, ::2, ::2]
    assert np.array_equal(one_mm.labels_on_grid(fine, labels.shape, np.full(3, spacing)), labels)


def test_intensities_are_scaled_by_percentiles_of_all_voxels():
    data = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    found = synthseg.rescale(data)
    assert found.min() == 0 and found.max() == 1
    assert found.ravel()[500] == pytest.approx(0.5) and found.ravel()[5] == 0 and found.ravel()[995] == 1
    assert not synthseg.rescale(np.ones((3, 3, 3))).any()


def test_padding_is_central_and_divides():
    data = np.ones((130, 160, 33), np.float32)
    padded, place = synthseg.pad_for_network(data)
    assert padded.shape == (160, 160, 128)
    assert [part.start for part in place] == [15, 0, 47]
    assert np.array_equal(padded[place], data) and padded.sum() == data.sum()


def test_blur_is_a_dense_gaussian_with_zeros_around():
    posteriors = np.random.default_rng(0).random((5, 6, 7, 2)).astype(np.float32)
    squares = sum(np.meshgrid(*[np.array([1, 0, 1])] * 3, indexing="ij"))
    kernel = np.exp(-squares / (2 * 0.5**2))
    kernel /= kernel.sum()
    expected = ndimage.correlate(posteriors, kernel[..., None], mode="constant")
    np.testing.assert_allclose(synthseg.blur(posteriors), expected, atol=1e-6)


@pytest.mark.parametrize("labels, middle", [(LABELS_1, 4), (LABELS_2, 5)])
def test_sides_are_exchanged_by_name(labels, middle):
    order = synthseg.mirror_order(labels)
    names = [synthseg.NAMES[label] for label in labels]
    swapped = {"left": "right", "right": "left"}
    assert [names[k] for k in order] == [" ".join(swapped.get(word, word) for word in name.split()) for name in names]
    assert (order == np.arange(len(labels))).sum() == middle


def test_detached_pieces_are_removed():
    """One of everything, one of a structure inside the brain; what is left sums to 1."""
    posteriors = np.zeros((20, 12, 12, 33), np.float32)
    white, thalamus, csf = (LABELS_2.index(label) for label in (2, 10, 24))
    posteriors[2:12, 2:10, 2:10, white] = 1
    posteriors[15:17, 5:7, 5:7, white] = 1  # outside the brain
    posteriors[4:6, 4:6, 4:6] = np.eye(33)[thalamus] * 0.7 + np.eye(33)[white] * 0.3
    posteriors[9, 8, 8] = np.eye(33)[thalamus] * 0.6 + np.eye(33)[csf] * 0.4  # a second thalamus
    posteriors[..., 0] = posteriors.sum(-1) == 0
    found = synthseg.clean(posteriors.copy(), LABELS_2, (slice(1, 19), slice(0, 12), slice(0, 12)))
    assert found.shape == (18, 12, 12, 33)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    assert found[14:16, 5:7, 5:7, 0].min() == 1
    assert found[8, 8, 8, thalamus] == 0 and found[8, 8, 8, csf] == 1
    np.testing.assert_allclose(found[3:5, 4:6, 4:6, thalamus], 0.7, atol=1e-6)


def test_volumes_are_soft():
    posteriors = np.zeros((10, 10, 10, 32), np.float32)
    posteriors[..., 1] = 0.25
    posteriors[..., 0] = 0.75
    volumes = synthseg.volumes_of(posteriors, LABELS_1, 2.0)
    assert volumes[2] == pytest.approx(0.5) and sum(volumes.values()) == pytest.approx(0.5) and 0 not in volumes


@pytest.fixture(scope="module")
def image():
    """A bright ellipsoid on voxels of 2 mm, one half brighter than the other."""
    place = np.stack(np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in (14, 16, 12)], indexing="ij"))
    data = ((place**2).sum(0) < 1) * (0.7 + 0.3 * (place[0] > 0)) + 0.1 * smooth_noise((14, 16, 12))
    return Image(data.astype(np.float32), Grid(data.shape, np.diag([2.0, 2, 2, 1])), scale=0.9)


def by_hand(weights, image):
    """Soft volumes by the description, each step by other means than the backend's where there are any."""
    fine, _ = one_mm.resample_to_1mm(image.data, np.full(3, 2.0))
    padded, place = synthseg.pad_for_network(synthseg.rescale(fine))

    def posteriors(x):
        soft = np.asarray(jax.nn.softmax(network(weights, x[None, ..., None])[0]))
        return ndimage.gaussian_filter(soft, (0.5, 0.5, 0.5, 0), mode="constant", radius=1)

    labels = LABELS_1 if weights["unet_likelihood/bias"].size == 32 else LABELS_2
    sided = [label for label in LABELS_1 if label not in (0, 14, 15, 16)]
    left, right = sided[: len(sided) // 2], sided[len(sided) // 2 :]  # in the order of the structures, on both sides
    partner = dict(zip(left + right, right + left, strict=True))
    order = [labels.index(partner.get(label, label)) for label in labels]
    mean = 0.5 * (posteriors(padded) + posteriors(padded[::-1].copy())[::-1][..., order])
    found = synthseg.clean(mean, labels, place)
    return dict(zip(labels, found.reshape(-1, len(labels)).sum(0) / 1000, strict=True)), found.argmax(-1), labels


@pytest.mark.parametrize("num_labels", [32, 33])
def test_backend_with_random_weights(tmp_path, monkeypatch, image, num_labels):
    """1.0 from Keras's layout and 2.0 from PyTorch's, on an image smaller than a brain."""
    monkeypatch.setattr(synthseg, "_LEAST_SIDE", 32)
    monkeypatch.setattr(synthseg, "_LEAST_ML", 0.1)
    weights = random_weights(num_labels, features=1, levels=2, seed=3)
    weights["unet_likelihood/kernel"] *= 8
    path = tmp_path / ("w.h5" if num_labels == 32 else "w.pth")
    if num_labels == 32:
        write_keras_h5(path, weights, whole_model=True)
    else:
        write_state_dict(path, in_torch_names(weights))
    backend = SynthSeg(path)
    assert backend.name == ("synthseg-1.0" if num_labels == 32 else "synthseg-2.0")
    assert backend.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    found = backend(image, labels=True)
    expected, hard, labels = by_hand(weights, image)
    assert set(found.volumes_ml) == set(backend.columns)
    for label in labels[1:]:
        column = synthseg.column_of(synthseg.NAMES[label])
        assert found.volumes_ml[column] == pytest.approx(expected[label], rel=1e-3, abs=1e-4)
    assert found.volumes_ml["ventricles_ml"] == pytest.approx(sum(expected[k] for k in (4, 5, 43, 44)), rel=1e-3)
    assert found.volumes_ml["brain_ml"] == pytest.approx(found.volumes_ml["tissue_ml"] / 0.9**3)
    assert np.isnan(found.volumes_ml["icv_ml"]) == (num_labels == 32)
    assert found.labels.shape == image.data.shape and found.labels.dtype == np.int16
    expected_labels = np.asarray(labels)[hard]
    assert set(np.unique(found.labels)) <= set(labels) and len(np.unique(found.labels)) > 2
    assert np.mean(found.labels == expected_labels[::2, ::2, ::2]) == 1
    empty = backend(Image(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4))))
    assert "no brain found" in empty.reason and np.isnan(list(empty.volumes_ml.values())).all()


def test_weights_of_another_number_of_labels_are_refused(tmp_path):
    write_keras_h5(tmp_path / "w.h5", random_weights(19, features=1, levels=2))
    with pytest.raises(UserError, match="19 labels"):
        SynthSeg(tmp_path / "w.h5")
