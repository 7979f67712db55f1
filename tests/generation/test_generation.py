"""Sampling and synthetic datasets."""

import json
import shutil

import numpy as np
import pytest

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.dataset import (
    MANIFEST,
    Settings,
    check_conditions,
    draw_conditions,
    generate,
    read_conditions,
)
from brainldm.generation.sampler import make_sampler, reconstruct, sample_keys, sweep
from brainldm.runtime.errors import UserError
from brainldm.volumes.nifti import read_volume
from brainldm.weights.model_folder import load_model

COVARIATES = Covariates()
ROW = {"sex": "F", "age": 60.0, "ventricles_ml": 30.0, "brain_ml": 1500.0}


@pytest.fixture(scope="module")
def model(demo_run):
    return load_model(demo_run / "model")


@pytest.fixture(scope="module")
def sampler(model):
    return make_sampler(model, Sampling(2), batch_size=3)


def test_a_brain_depends_on_its_seed_index_and_conditions_alone(sampler):
    codes = COVARIATES.encode([ROW, {**ROW, "age": 70.0}, {**ROW, "sex": "M"}])
    together = sampler(5, np.array([4, 9, 2]), codes)
    alone = sampler(5, np.array([9]), codes[1:2])
    np.testing.assert_array_equal(together[1], alone[0])
    assert not np.array_equal(sampler(6, np.array([9]), codes[1:2]), alone)
    assert not np.array_equal(sampler(5, np.array([8]), codes[1:2]), alone)
    assert not np.array_equal(sampler(5, np.array([9]), codes[:1]), alone)


def test_no_two_samples_share_a_key():
    import jax

    keys = [np.asarray(jax.random.key_data(sample_keys(seed, np.arange(50)))) for seed in (0, 1)]
    assert len({tuple(k) for k in np.concatenate(keys)}) == 100


def test_guidance_of_one_is_the_plain_model(model, sampler):
    codes = COVARIATES.encode([ROW])
    plain = sampler(0, np.array([0]), codes)
    strong = make_sampler(model, Sampling(2, guidance=3.0), batch_size=3)(0, np.array([0]), codes)
    almost = make_sampler(model, Sampling(2, guidance=1.0 + 1e-6), batch_size=3)(0, np.array([0]), codes)
    np.testing.assert_allclose(almost, plain, atol=1e-4)
    assert np.abs(strong - plain).max() > 1e-3


def test_a_sweep_changes_one_condition_and_keeps_the_noise(sampler):
    volumes = sweep(sampler, COVARIATES, "age", [50, 60, 60], ROW, seed=1, index=7)
    np.testing.assert_array_equal(volumes[1], volumes[2])
    np.testing.assert_array_equal(volumes[1], sampler(1, np.array([7]), COVARIATES.encode([ROW]))[0])
    assert not np.array_equal(volumes[0], volumes[1])


def test_reconstructions_have_the_shape_of_the_scans(model, demo_run):
    scan = read_volume(next((demo_run / "population/sub-0001/anat").glob("*.nii.gz"))).data
    again = reconstruct(model, scan[None])
    assert again.shape == (1, *scan.shape)
    assert np.corrcoef(again.ravel(), scan.ravel())[0, 1] > 0.5


def test_the_dataset_says_where_each_brain_comes_from(model, tmp_path):
    rows = [ROW, {**ROW, "ventricles_ml": 60.0}]
    generate(model, tmp_path / "a", rows, Settings(Sampling(2), seed=3, batch_size=2))
    generate(model, tmp_path / "b", rows, Settings(Sampling(2), seed=3, batch_size=2))
    entries = [json.loads(line) for line in (tmp_path / "a" / MANIFEST).read_text().splitlines()]
    assert [e["conditions"] for e in entries] == rows
    for entry in entries:
        content = (tmp_path / "a" / entry["file"]).read_bytes()
        assert content == (tmp_path / "b" / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"]
        assert entry["model_sha256"] == model.sha256
    header = read_bytes_of_header(tmp_path / "a" / entries[0]["file"])
    assert header.startswith("SYNTHETIC brainldm")
    description = json.loads((tmp_path / "a/dataset_description.json").read_text())
    assert description["Synthetic"] is True and description["GeneratedBy"][0]["Name"] == "brainldm"


def read_bytes_of_header(path):
    import nibabel as nib

    return nib.load(path).header["descrip"].tobytes().decode()


def test_conditions_outside_the_range_need_to_be_asked_for(model, tmp_path):
    row = {**ROW, "age": 95.0}
    with pytest.raises(UserError, match=r"age 95 years \(range 44 to 82\).*--extrapolate"):
        generate(model, tmp_path / "a", [row], Settings(Sampling(2)))
    assert not (tmp_path / "a").exists()
    generate(model, tmp_path / "a", [row], Settings(Sampling(2), extrapolate=True))
    sidecar = json.loads((tmp_path / "a/sub-0001/anat/sub-0001_T1w.json").read_text())
    assert sidecar["Extrapolated"] is True
    assert "\ttrue\n" in (tmp_path / "a/participants.tsv").read_text()


def test_an_output_folder_that_holds_something_is_left_alone(model, tmp_path):
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(UserError, match="already holds"):
        generate(model, tmp_path, [ROW], Settings(Sampling(2)))
    assert [p.name for p in tmp_path.iterdir()] == ["data.csv"]


def test_drawn_conditions_keep_what_was_fixed():
    rows = draw_conditions(COVARIATES, 40, 7, {"age": "60:65", "sex": "female"})
    assert {r["sex"] for r in rows} == {"F"}
    assert all(60 <= r["age"] <= 65 for r in rows)
    volumes = [r["ventricles_ml"] for r in rows]
    assert min(volumes) < 40 and max(volumes) > 130
    assert draw_conditions(COVARIATES, 10, 7, {"age": "60:65"})[9]["ventricles_ml"] == rows[9]["ventricles_ml"]
    assert draw_conditions(COVARIATES, 40, 8, {}) != draw_conditions(COVARIATES, 40, 7, {})


@pytest.mark.parametrize(
    "fixed, said",
    [
        ({"age": "70:60"}, "upside down"),
        ({"age": "old"}, "not a number"),
        ({"sex": "3"}, "F or M"),
        ({"height": "180"}, "no condition 'height'"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(fixed, said):
    with pytest.raises(UserError, match=said):
        draw_conditions(COVARIATES, 1, 0, fixed)


def test_conditions_from_a_table(demo_run, tmp_path):
    rows = read_conditions(demo_run / "held_out", COVARIATES)
    table = shutil.copy(demo_run / "held_out/participants.tsv", tmp_path / "wanted.tsv")
    assert read_conditions(table, COVARIATES) == rows
    assert check_conditions(rows, COVARIATES, extrapolate=True) == [False] * len(rows)
