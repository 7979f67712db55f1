"""The diffusion stage trains from the latent cache; the autoencoder stage from changed volumes."""

import json
import shutil

import jax
import numpy as np
import pytest

from brainldm.data.latents import LatentCache
from brainldm.parallel.mesh import data_mesh
from brainldm.runtime.errors import Stopped, UserError
from brainldm.training import loop, restore, stages
from brainldm.training.flags import load_config
from brainldm.training.inputs import augmentation_of


@pytest.fixture
def config(demo_run):
    """The config of the demo's diffusion stage, to be changed."""
    return restore.read_config(demo_run / "diffusion").unlock()


@pytest.fixture
def bare(demo_run, tmp_path):
    """The demo's dataset without its volumes."""
    return shutil.copytree(demo_run / "population", tmp_path / "bare", ignore=shutil.ignore_patterns("*.nii*"))


def no_encoding(*_):
    def encode(images):
        raise KeyboardInterrupt("encoded")

    return encode


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_leaves_a_complete_cache(demo_run):
    folder = demo_run / "diffusion/latents"
    facts = json.loads((demo_run / "diffusion/run.json").read_text())
    index = json.loads((folder / "index.json").read_text())
    assert facts["latents"] == str(folder)
    assert index["autoencoder_sha256"] == facts["autoencoder_sha256"] and index["variants"] == 1
    cache = LatentCache(folder, index)
    assert len(cache) == facts["scans_training"] + facts["scans_validation"] == 8


def test_a_complete_cache_needs_neither_volumes_nor_encoding(demo_run, bare, config, monkeypatch):
    monkeypatch.setattr(stages, "encoder", no_encoding)
    workdir = demo_run / "diffusion"
    with_volumes = stages.make_stage(config, data_mesh(), workdir)
    config.data.path = str(bare)
    stage = stages.make_stage(config, data_mesh(), workdir)
    assert stage.facts == with_volumes.facts and stage.names == with_volumes.names
    for number in (0, 5):
        jax.tree.map(np.testing.assert_array_equal, stage.train[number], with_volumes.train[number])


def test_without_volumes_what_is_missing_is_named(bare, config, tmp_path):
    config.data.path = str(bare)
    with pytest.raises(UserError, match="8 scans have no T1w image .*sub-0001"):
        stages.make_stage(config, data_mesh(), tmp_path / "run")


def test_latents_of_other_weights_are_refused(demo_run, config, monkeypatch):
    real = stages.load_autoencoder

    def other(*arguments):
        arguments, spacing, params = real(*arguments)
        return arguments, spacing, jax.tree.map(lambda x: x * 1.001, params)

    monkeypatch.setattr(stages, "load_autoencoder", other)
    before = shards(demo_run / "diffusion/latents")
    with pytest.raises(UserError, match="not of this run .autoencoder_sha256"):
        stages.make_stage(config, data_mesh(), demo_run / "diffusion")
    assert shards(demo_run / "diffusion/latents") == before


def test_an_encoding_cut_off_goes_on_in_the_same_work_dir(demo_run, config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stages, "encoder", no_encoding)
        with pytest.raises(Stopped):
            loop.train(config, workdir)
    assert (workdir / "latents/index.json").exists() and not (workdir / "config.json").exists()
    monkeypatch.setattr(loop, "_loop", lambda *_: None)
    loop.train(config, workdir)  # is not refused, although the folder is not empty
    # and the latents are those of an undisturbed run
    assert shards(workdir / "latents") == shards(demo_run / "diffusion/latents")


def test_scans_that_join_are_encoded_alone(demo_run, config, tmp_path, monkeypatch):
    few = shutil.copytree(demo_run / "population", tmp_path / "few")
    table = (few / "participants.tsv").read_text().splitlines()
    (few / "participants.tsv").write_text("\n".join(table[:-2]) + "\n")
    whole, config.data.path = config.data.path, str(few)
    config.latents.path = str(tmp_path / "latents")
    stages.make_stage(config, data_mesh(), tmp_path / "run")
    config.data.path = whole
    seen = []
    real = stages.encoder
    monkeypatch.setattr(stages, "encoder", lambda *a: lambda x: seen.append(x) or real(*a)(x))
    stage = stages.make_stage(config, data_mesh(), tmp_path / "run")
    assert len(seen) == 1 and len({image.tobytes() for image in seen[0]}) == 2
    straight = stages.make_stage(config, data_mesh(), demo_run / "diffusion")
    np.testing.assert_allclose(stage.train[0]["latent"], straight.train[0]["latent"], atol=1e-5)


def test_other_training_scans_do_not_continue_a_run(demo_run, config, tmp_path):
    workdir = shutil.copytree(demo_run / "diffusion", tmp_path / "run")
    few = shutil.copytree(demo_run / "population", tmp_path / "few")
    table = (few / "participants.tsv").read_text().splitlines()
    names = stages.make_stage(config, data_mesh(), workdir).names
    (few / "participants.tsv").write_text("\n".join(row for row in table if not row.startswith(names[-1])) + "\n")
    config.data.path = str(few)
    with pytest.raises(UserError, match="other scans to train on"):
        loop.train(config, workdir)


def test_variants_are_drawn_and_change_with_the_augmentation(config, tmp_path):
    config.latents.variants = 3
    with pytest.raises(UserError, match="nothing in config.data.augment is switched on"):
        stages.make_stage(config, data_mesh(), tmp_path / "run")
    config.data.augment.affine_probability = 1.0
    stage = stages.make_stage(config, data_mesh(), tmp_path / "run")
    drawn = [stage.train[k] for k in range(8)]
    of_one = [b["latent"][i] for b in drawn for i in range(4) if b["index"][i] == 0]
    assert 1 < len({latent.tobytes() for latent in of_one}) <= 3
    again = stages.make_stage(config, data_mesh(), tmp_path / "run")
    np.testing.assert_array_equal(again.train[6]["latent"], drawn[6]["latent"])
    config.data.augment.scale = 0.1
    with pytest.raises(UserError, match="not of this run .augment"):
        stages.make_stage(config, data_mesh(), tmp_path / "run")


def test_volumes_are_changed_for_the_autoencoder(demo_run):
    config = restore.read_config(demo_run / "autoencoder").unlock()
    plain = stages.make_stage(config, data_mesh(), demo_run / "autoencoder").train
    config.data.augment.affine_probability = 1.0
    changed = stages.make_stage(config, data_mesh(), demo_run / "autoencoder").train
    for number in range(3):
        np.testing.assert_array_equal(plain[number]["index"], changed[number]["index"])
        difference = np.abs(plain[number]["image"] - changed[number]["image"])
        assert difference.max() > 0.05 and difference.mean() < 0.05


@pytest.mark.parametrize(
    "name, active", [("paper_autoencoder", True), ("paper_ldm", False), ("demo_autoencoder", False)]
)
def test_configs_ask_for_changes_where_the_recipe_does(name, active):
    augmentation = augmentation_of(load_config(name))
    assert augmentation.active == active and augmentation.flip_probability == 0
