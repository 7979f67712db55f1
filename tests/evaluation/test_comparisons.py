"""Comparisons of two sets of volumes whose difference is known."""

import hashlib

import numpy as np
import pytest

from brainldm.evaluation import feature_networks
from brainldm.evaluation.comparisons import feature_distances, morphometry, sharpness, variety
from brainldm.evaluation.feature_networks import feature_network, med3d_network, random_network, vectors_of
from brainldm.models.features.medicalnet import expected_shapes
from brainldm.runtime.errors import UserError


def volumes(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [scale * rng.random((16, 20, 16), np.float32) for _ in range(count)]


def waves(count, seed=0, side=16):
    """Volumes of one wave each, along the first axis."""
    rng = np.random.default_rng(seed)
    x = np.arange(side)[:, None, None] * np.ones((1, side, side))
    return [(0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 0.2) * x)).astype(np.float32) for _ in range(count)]


def test_vectors_do_not_depend_on_the_batch_and_not_on_brightness():
    network = random_network()
    some = volumes(6)
    found = vectors_of(some, network)
    assert found.shape == (6, network.features)
    np.testing.assert_allclose(vectors_of(some[4:5], network)[0], found[4], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors_of([0.5 * v + 0.1 for v in some], network), found, rtol=1e-3, atol=1e-5)
    assert network.sha256 == random_network().sha256 != random_network(1).sha256
    assert vectors_of([], network).shape == (0, network.features)


def test_sets_that_differ_are_farther_apart_than_halves_of_one():
    found = feature_distances(volumes(20), waves(24), random_network(), seed=0)
    made, real = found["synthetic"], found["real"]
    assert made["n"] == [20, 24] and real["n"] == [12, 12]
    assert made["frechet"] > 10 * real["frechet"] and made["kernel"]["low"] > real["kernel"]["high"]
    assert made["manifolds"]["precision"] == 0 and made["manifolds"]["coverage"] < 0.1
    assert not made["determined"] and found["distance"].startswith("Frechet distance (random")


def test_one_distribution_is_not_told_apart():
    made = feature_distances(waves(40), waves(40, seed=1), random_network(), seed=0)["synthetic"]
    assert made["kernel"]["low"] < 0 < made["kernel"]["high"] or abs(made["kernel"]["value"]) < 1e-4
    assert made["manifolds"]["coverage"] > 0.7


def test_small_sets_have_no_distances():
    found = feature_distances(volumes(3), volumes(30, 1), random_network(), seed=0)
    assert found["synthetic"]["frechet"] is None and found["synthetic"]["manifolds"] is None
    assert found["real"]["frechet"] is not None


def test_features_that_are_not_finite_name_the_image():
    broken = volumes(3)
    broken[1][0, 0, 0] = np.nan
    with pytest.raises(UserError, match="image 2 of a dataset"):
        vectors_of(broken, random_network())


def test_a_checkpoint_of_unknown_origin_is_said_to_be_so(tmp_path, monkeypatch):
    path = tmp_path / "resnet_10.pth"
    path.write_bytes(b"weights")
    weights = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(10).items()}
    monkeypatch.setattr(feature_networks, "read_torch_state_dict", lambda path: weights)
    network = med3d_network(path)
    assert network.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert network.name == "Med3D ResNet-10 (weights of unknown origin)" and network.distance == "FID (Med3D ResNet-10)"
    assert vectors_of(volumes(1), network).shape == (1, 512)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_text("not weights")
    with pytest.raises(UserError):
        feature_network(tmp_path / "weights.pth")


def test_blurred_brains_lack_high_frequencies():
    sharp = volumes(4)
    soft = [(v[:-1] + v[1:])[:15, :15, :15] for v in sharp]
    found = sharpness([np.pad(v, ((0, 1), (0, 5), (0, 1))) for v in soft], sharp, 4.0, seed=0)
    assert 0 < found["missing"] < 1
    assert len(found["real"]["frequencies_per_mm"]) == len(found["real"]["power"])
    assert sharpness(sharp, sharp, 4.0, seed=0)["missing"] == 0


def test_morphometry_is_in_shares_of_the_head():
    rng = np.random.default_rng(0)
    real, icv = rng.uniform(20, 40, 50), np.full(50, 1500.0)
    found = morphometry({"ventricles_ml": real + 15}, {"ventricles_ml": real}, (icv, icv))["ventricles_ml"]
    assert found["wasserstein"] == pytest.approx(1.0)
    assert found["standardised"] == pytest.approx(1.0 / (100 * real / 1500).std(ddof=1))
    lost = np.full(50, np.nan)
    assert morphometry({"ventricles_ml": lost}, {"ventricles_ml": real}, (icv, icv)) == {}


def test_variety_counts_what_it_compares():
    compared = []
    found = variety(volumes(4), max_pairs=5, seed=0, progress=compared.append)
    assert sum(compared) == 15 and all(measure["pairs"] == 5 for measure in found.values())
    assert found["gradient_ssim"]["scales"] == 1 and found["gradient_ssim_multi_scale"]["scales"] == 1
