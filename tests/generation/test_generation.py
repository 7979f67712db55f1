"""Sampling and synthetic datasets."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from fake_generation import fake_sampler

from brainldm.cli import main
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation import dataset
from brainldm.generation import sampler as sampler_module
from brainldm.generation.conditions import check_conditions, draw_conditions, read_conditions
from brainldm.generation.dataset import Settings, generate
from brainldm.generation.manifest import read_manifests
from brainldm.generation.sampler import make_sampler, reconstruct, sample_keys, sweep
from brainldm.runtime.errors import UserError
from brainldm.volumes.nifti import read_volume
from brainldm.weights.convert import to_monai
from brainldm.weights.model_folder import autoencoder_shapes, load_model, save_model

COVARIATES = Covariates()
ROW = {"sex": "F", "age": 60.0, "ventricles_ml": 30.0, "brain_ml": 1500.0}


@pytest.fixture(scope="module")
def model(demo_run):
    return load_model(demo_run / "model")


@pytest.fixture(scope="module")
def sampler(model):
    return make_sampler(model, Sampling(2), batch_size=3)


def test_a_brain_depends_on_its_seed_index_and_conditions_alone(sampler):
    conditions = COVARIATES.encode([ROW, {**ROW, "age": 70.0}, {**ROW, "sex": "M"}])
    together = sampler(5, np.array([4, 9, 2]), conditions)
    alone = sampler(5, np.array([9]), conditions[1:2])
    np.testing.assert_array_equal(together[1], alone[0])
    assert not np.array_equal(sampler(6, np.array([9]), conditions[1:2]), alone)
    assert not np.array_equal(sampler(5 + 2**32, np.array([9]), conditions[1:2]), alone)
    assert not np.array_equal(sampler(5, np.array([8]), conditions[1:2]), alone)
    assert not np.array_equal(sampler(5, np.array([9]), conditions[:1]), alone)


def test_no_two_samples_share_a_key():
    import jax

    seeds = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1)
    keys = [np.asarray(jax.random.key_data(sample_keys(seed, np.arange(50)))) for seed in seeds]
    assert len({tuple(k) for k in np.concatenate(keys)}) == 50 * len(seeds)


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_seed_of_32_bits_gives_the_key_that_jax_gives_it(seed):
    import jax

    expected = [jax.random.fold_in(jax.random.key(seed), index) for index in (0, 5)]
    found = jax.random.key_data(sample_keys(seed, np.array([0, 5])))
    np.testing.assert_array_equal(found, [jax.random.key_data(key) for key in expected])


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, None])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(UserError, match=r"0 to 2\^63 - 1"):
        Settings(seed=seed)


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps=0"],
        ["--seed=-1"],
        ["--seed=9223372036854775808"],
        ["--guidance=nan"],
        ["--guidance=1e308"],
        ["--eta=-1"],
        ["--eta=nan"],
        ["--batch-size=0"],
        ["--n=1000000001"],
        ["--sampler=euler"],
        ["--steps=2000"],
        ["--age=1e308", "--extrapolate"],
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_meant_are_refused_before_any_work(demo_run, tmp_path, flags, monkeypatch):
    monkeypatch.setattr("brainldm.generation.sampler.sample_latents", None)
    assert main(["generate", str(demo_run / "model"), str(tmp_path / "out"), *flags]) == 2
    assert not (tmp_path / "out").exists()


def test_guidance_of_one_is_the_plain_model(model, sampler):
    conditions = COVARIATES.encode([ROW])
    plain = sampler(0, np.array([0]), conditions)
    strong = make_sampler(model, Sampling(2, guidance=3.0), batch_size=3)(0, np.array([0]), conditions)
    almost = make_sampler(model, Sampling(2, guidance=1.0 + 1e-6), batch_size=3)(0, np.array([0]), conditions)
    np.testing.assert_allclose(almost, plain, atol=1e-4)
    assert np.abs(strong - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_every_sampler_makes_brains(model, sampler, name):
    sampling = Sampling(2, sampler=name, spacing="log_snr")
    conditions = COVARIATES.encode([ROW])
    volumes = make_sampler(model, sampling, batch_size=3)(0, np.array([0]), conditions)
    assert np.isfinite(volumes).all() and np.abs(volumes - sampler(0, np.array([0]), conditions)).max() > 1e-3


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


def test_a_sampler_is_compiled_when_it_is_made(model, monkeypatch, capsys):
    monkeypatch.setattr(sampler_module, "time", SimpleNamespace(monotonic=iter([0.0, 90.0]).__next__))
    sample = make_sampler(model, Sampling(2), batch_size=3)
    assert capsys.readouterr().err == "compiled the sampler in 1 min 30 s\n"
    monkeypatch.setattr(sampler_module, "sample_latents", None)
    assert len(sample(0, np.array([0]), COVARIATES.encode([ROW]))) == 1


def test_progress_counts_whole_batches(model, tmp_path, monkeypatch):
    """Brains of a batch come at the same moment, so the first of one would tell too long a time left."""
    counted = []

    class Counting(dataset.Progress):
        def __call__(self, done):
            counted.append(done)

    monkeypatch.setattr(dataset, "Progress", Counting)
    generate(model, tmp_path / "out", [ROW] * 4, Settings(Sampling(2), batch_size=3, extrapolate=True))
    assert counted == [3, 4]


def test_the_dataset_says_where_each_brain_comes_from(model, tmp_path):
    rows = [ROW, {**ROW, "ventricles_ml": 60.0}]
    settings = Settings(Sampling(2), seed=3, batch_size=3, extrapolate=True)
    generate(model, tmp_path / "a", rows, settings)
    generate(model, tmp_path / "b", rows, settings)
    entries = list(read_manifests(tmp_path / "a"))
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


def test_a_brain_is_the_same_however_many_are_drawn_with_it(model, tmp_path):
    for count in (1, 4):
        settings = Settings(Sampling(2), seed=3, batch_size=3, extrapolate=True)
        generate(model, tmp_path / str(count), [ROW] * count, settings)
    image = "sub-0001/anat/sub-0001_space-MNI152NLin2009aSym_T1w.nii.gz"
    assert (tmp_path / "1" / image).read_bytes() == (tmp_path / "4" / image).read_bytes()
    assert json.loads((tmp_path / "1/T1w.json").read_text())["BatchSize"] == 3


def read_bytes_of_header(path):
    import nibabel as nib

    return nib.load(path).header["descrip"].tobytes().decode()


def test_conditions_outside_the_range_need_to_be_asked_for(model, tmp_path):
    row = {**ROW, "age": 95.0}
    with pytest.raises(UserError, match=r"age 95 years \(trained on [\d.]+ to [\d.]+\).*--extrapolate"):
        generate(model, tmp_path / "a", [row], Settings(Sampling(2), batch_size=3))
    assert not (tmp_path / "a").exists()
    generate(model, tmp_path / "a", [row], Settings(Sampling(2), batch_size=3, extrapolate=True))
    assert next(read_manifests(tmp_path / "a"))["extrapolated"] is True
    assert "\ttrue\n" in (tmp_path / "a/participants.tsv").read_text()


def test_outside_is_what_no_training_scan_reached(demo_run, model, tmp_path):
    covariates = model.spec.covariates
    facts = json.loads((demo_run / "diffusion/run.json").read_text())
    scans = read_conditions(demo_run / "population", covariates)
    for name, (low, high) in facts["observed"].items():
        assert covariates[name].limits == (low, high)
        values = [row[name] for row in scans]
        assert covariates[name].low < low < high < covariates[name].high and low in values and high in values
    beyond = {**ROW, "ventricles_ml": covariates["ventricles_ml"].limits[1] + 1.0}
    inside = {name: sum(covariates[name].limits) / 2 for name in facts["observed"]}
    assert check_conditions([{**beyond, "sex": "F"}], covariates, extrapolate=True) == [True]
    assert check_conditions([{**inside, "sex": "F"}], covariates, extrapolate=False) == [False]
    assert not any(check_conditions(draw_conditions(covariates, 200, 0, {}), covariates, extrapolate=False))


def test_a_model_that_does_not_say_what_it_was_trained_on_has_its_ranges():
    assert "observed" not in COVARIATES.to_json()[1]
    assert Covariates.from_json(COVARIATES.to_json()) == COVARIATES
    narrow = COVARIATES.with_observed({"ventricles_ml": [10.0, 36.5]})
    assert Covariates.from_json(narrow.to_json()) == narrow
    row = {**ROW, "ventricles_ml": 60.0}
    assert check_conditions([row], COVARIATES, extrapolate=False) == [False]
    with pytest.raises(UserError, match=r"ventricles_ml 60 mL \(trained on 10 to 36.5\)"):
        check_conditions([row], narrow, extrapolate=False)
    drawn = [r["ventricles_ml"] for r in draw_conditions(narrow, 100, 0, {})]
    assert 10.0 <= min(drawn) < 12 and 34 < max(drawn) <= 36.5


def test_an_output_folder_that_holds_something_is_left_alone(model, tmp_path):
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(UserError, match="already holds"):
        generate(model, tmp_path, [ROW], Settings(Sampling(2), extrapolate=True))
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


def written(folder):
    return [entry["conditions"] for entry in read_manifests(folder)]


def test_conditions_are_those_of_the_people_of_the_model_unless_asked_otherwise(
    model, demo_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(dataset, "make_sampler", fake_sampler(shape=model.spec.grid.shape))
    folder, out = str(demo_run / "model"), tmp_path
    assert model.spec.demography is not None
    asked = ["--n", "4", "--seed", "5"]
    assert main(["generate", folder, str(out / "a"), *asked]) == 0
    assert main(["generate", folder, str(out / "b"), *asked, "--uniform"]) == 0
    assert written(out / "a") == draw_conditions(model.spec.covariates, 4, 5, {}, model.spec.demography)
    assert written(out / "b") == draw_conditions(model.spec.covariates, 4, 5, {})
    (out / "people.json").write_text('{"sex": {"M": 1}}')
    capsys.readouterr()
    more = ["--population", str(out / "people.json"), "--age", "60", "--extrapolate"]
    assert main(["generate", folder, str(out / "c"), *asked, *more]) == 0
    assert {row["sex"] for row in written(out / "c")} == {"M"}
    assert "age 60 years: percentile" in capsys.readouterr().err
    more = ["--n", "2", "--sweep", "age=50:60:3", "--extrapolate"]
    assert main(["generate", folder, str(out / "d"), *more]) == 0
    assert [row["age"] for row in written(out / "d")] == [50.0, 55.0, 60.0] * 2
    assert [entry["noise"] for entry in read_manifests(out / "d")] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--uniform", "--population", "x"], "exclude each other"),
        (["--population", "nowhere.json"], "nowhere.json"),
        (["--sweep", "age=1"], "LOW:HIGH:COUNT"),
        (["--shard", "3/2"], "shards are 1/2"),
        (["--labels", "--shard", "1/2"], "whole dataset"),
    ],
)
def test_mistakes_in_who_is_drawn_are_said_before_any_work(demo_run, tmp_path, flags, said, capsys):
    assert main(["generate", str(demo_run / "model"), str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_conditions_from_a_table(demo_run, tmp_path):
    rows = read_conditions(demo_run / "held_out", COVARIATES)
    table = shutil.copy(demo_run / "held_out/participants.tsv", tmp_path / "wanted.tsv")
    assert read_conditions(table, COVARIATES) == rows
    assert check_conditions(rows, COVARIATES, extrapolate=True) == [False] * len(rows)


def test_a_space_to_depth_autoencoder_and_a_flow_make_a_model_folder(model, tmp_path):
    import jax

    architecture = {"architecture": "space_to_depth", "channels": [4, 8], "num_res_blocks": [1, 2]}
    spec = dataclasses.replace(
        model.spec,
        autoencoder={**architecture, "norm_num_groups": 2, "latent_channels": model.spec.latent_shape[-1]},
        prediction="flow",
        schedule={"kind": "rectified_flow"},
        sampling=Sampling(3, sampler="heun", spacing="trailing"),
    )
    rng = np.random.default_rng(0)
    shapes = autoencoder_shapes(spec.make_autoencoder(), spec.grid)
    parameters = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    save_model(tmp_path / "model", spec, parameters, model.unet, "card")
    loaded = load_model(tmp_path / "model")
    assert loaded.spec.latent_shape == model.spec.latent_shape
    rows = COVARIATES.encode([ROW, ROW])
    brains = make_sampler(loaded, loaded.spec.sampling, batch_size=2)(0, np.arange(2), rows)
    assert brains.shape == (2, *spec.grid.shape) and np.isfinite(brains).all()
    assert np.abs(brains[0] - brains[1]).max() > 1e-3
    with pytest.raises(UserError, match="space_to_depth.*no network"):
        to_monai(tmp_path / "model", tmp_path / "monai")
    assert not (tmp_path / "monai").exists()
