"""The diffusion stage trains from the latent cache; the autoencoder stage from changed volumes."""

import json
import shutil

import jax
import numpy as np
import pytest

from brainldm.data.latents import LatentCache
from brainldm.parallel.mesh import make_mesh
from brainldm.runtime.errors import Stopped, UserError
from brainldm.training import loop, restore
from brainldm.training.flags import load_config
from brainldm.training.inputs import augmentation_of
from brainldm.training.stage_diffusion import DiffusionStage
from brainldm.training.stages import make_stage
from brainldm.weights.model_folder import load_model, save_model


@pytest.fixture
def config(demo_run):
    """The config of the demo's diffusion stage, to be changed."""
    return restore.read_config(demo_run / "diffusion").unlock()


@pytest.fixture
def bare(demo_run, tmp_path):
    """The demo's dataset without its volumes."""
    return shutil.copytree(demo_run / "population", tmp_path / "bare", ignore=shutil.ignore_patterns("*.nii*"))


class NoEncoding(DiffusionStage):
    """The stage without its encoder."""

    def encoder(self, params):
        def encode(images):
            raise KeyboardInterrupt("encoded")

        return encode


def load(config, workdir, stage=make_stage):
    """The stage with its data."""
    return stage(config, make_mesh()).load(workdir)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_leaves_a_complete_cache(demo_run):
    folder = demo_run / "diffusion/latents"
    run_info = json.loads((demo_run / "diffusion/run.json").read_text())
    index = json.loads((folder / "index.json").read_text())
    assert run_info["latents"] == str(folder)
    assert index["autoencoder_sha256"] == run_info["autoencoder_sha256"] and index["variants"] == 1
    cache = LatentCache(folder, index)
    assert len(cache) == run_info["scans_training"] + run_info["scans_validation"] == 8


def test_a_complete_cache_needs_neither_volumes_nor_encoding(demo_run, bare, config):
    workdir = demo_run / "diffusion"
    with_volumes = load(config, workdir, NoEncoding)
    config.data.path = str(bare)
    without = load(config, workdir, NoEncoding)
    assert without.run_info == with_volumes.run_info and without.names == with_volumes.names
    for number in (0, 5):
        jax.tree.map(np.testing.assert_array_equal, without.train[number], with_volumes.train[number])


def test_without_volumes_what_is_missing_is_named(bare, config, tmp_path):
    config.data.path = str(bare)
    with pytest.raises(UserError, match="8 scans have no T1w image .*sub-0001"):
        load(config, tmp_path / "run")


def test_latents_of_other_weights_are_refused(demo_run, config, tmp_path):
    model = load_model(demo_run / "model")
    other = jax.tree.map(lambda x: x * 1.001, model.autoencoder)
    save_model(tmp_path / "other", model.spec, other, model.unet, "another autoencoder")
    config.autoencoder = str(tmp_path / "other")
    before = shards(demo_run / "diffusion/latents")
    with pytest.raises(UserError, match="not of this run .autoencoder_sha256"):
        load(config, demo_run / "diffusion")
    assert shards(demo_run / "diffusion/latents") == before


def test_an_encoding_cut_off_goes_on_in_the_same_work_dir(demo_run, config, tmp_path):
    class Encoded(DiffusionStage):
        def load(self, workdir):
            super().load(workdir)
            raise KeyboardInterrupt("loaded")

    workdir = tmp_path / "run"
    with pytest.raises(Stopped):
        loop.train(config, workdir, NoEncoding)
    assert (workdir / "latents/index.json").exists() and not (workdir / "config.json").exists()
    with pytest.raises(Stopped):
        loop.train(config, workdir, Encoded)  # is not refused, although the folder is not empty
    # and the latents are those of an undisturbed run
    assert shards(workdir / "latents") == shards(demo_run / "diffusion/latents")


def test_scans_that_join_are_encoded_alone(demo_run, config, tmp_path):
    few = shutil.copytree(demo_run / "population", tmp_path / "few")
    table = (few / "participants.tsv").read_text().splitlines()
    (few / "participants.tsv").write_text("\n".join(table[:-2]) + "\n")
    whole, config.data.path = config.data.path, str(few)
    config.latents.path = str(tmp_path / "latents")
    load(config, tmp_path / "run")
    config.data.path = whole
    seen = []

    class Watched(DiffusionStage):
        def encoder(self, params):
            encode = super().encoder(params)
            return lambda images: seen.append(images) or encode(images)

    stage = load(config, tmp_path / "run", Watched)
    assert len(seen) == 1 and len({image.tobytes() for image in seen[0]}) == 2
    straight = load(config, demo_run / "diffusion")
    np.testing.assert_allclose(stage.train[0]["latent"], straight.train[0]["latent"], atol=1e-5)


def test_other_training_scans_do_not_continue_a_run(demo_run, config, tmp_path):
    workdir = shutil.copytree(demo_run / "diffusion", tmp_path / "run")
    few = shutil.copytree(demo_run / "population", tmp_path / "few")
    table = (few / "participants.tsv").read_text().splitlines()
    names = load(config, workdir).names
    (few / "participants.tsv").write_text("\n".join(row for row in table if not row.startswith(names[-1])) + "\n")
    config.data.path = str(few)
    with pytest.raises(UserError, match="other scans to train on"):
        loop.train(config, workdir)


def test_other_labels_or_images_under_the_same_names_do_not_continue_a_run(demo_run, config, tmp_path):
    data = shutil.copytree(demo_run / "population", tmp_path / "data")
    header, *rows = (data / "participants.tsv").read_text().splitlines()
    ids, labels = zip(*(row.split("\t", 1) for row in rows), strict=True)
    rotated = [f"{name}\t{label}" for name, label in zip(ids, labels[1:] + labels[:1], strict=True)]
    (data / "participants.tsv").write_text("\n".join([header, *rotated]) + "\n")
    workdir = shutil.copytree(demo_run / "diffusion", tmp_path / "run")
    config.data.path = str(data)
    with pytest.raises(UserError, match="begun with other conditions"):
        loop.train(config, workdir)

    shutil.copy(demo_run / "population/participants.tsv", data)
    images = sorted(data.rglob("*_T1w.nii.gz"))
    contents = [image.read_bytes() for image in images]
    for image, content in zip(images, contents[1:] + contents[:1], strict=True):
        image.write_bytes(content)
    workdir = shutil.copytree(demo_run / "autoencoder", tmp_path / "autoencoder")
    config = restore.read_config(workdir).unlock()
    config.data.path = str(data)
    with pytest.raises(UserError, match="begun with other images under the same names"):
        loop.train(config, workdir)
    for image, content in zip(images, contents, strict=True):
        image.write_bytes(content)
    loop.train(config, workdir)


def test_variants_are_drawn_and_change_with_the_augmentation(config, tmp_path):
    config.latents.variants = 3
    with pytest.raises(UserError, match="nothing in config.data.augment is switched on"):
        load(config, tmp_path / "run")
    config.data.augment.affine_probability = 1.0
    stage = load(config, tmp_path / "run")
    drawn = [stage.train[k] for k in range(8)]
    of_one = [b["latent"][i] for b in drawn for i in range(4) if b["index"][i] == 0]
    assert 1 < len({latent.tobytes() for latent in of_one}) <= 3
    again = load(config, tmp_path / "run")
    np.testing.assert_array_equal(again.train[6]["latent"], drawn[6]["latent"])
    config.data.augment.scale = 0.1
    with pytest.raises(UserError, match="not of this run .augment"):
        load(config, tmp_path / "run")


def test_volumes_are_changed_for_the_autoencoder(demo_run):
    config = restore.read_config(demo_run / "autoencoder").unlock()
    plain = load(config, demo_run / "autoencoder").train
    config.data.augment.affine_probability = 1.0
    changed = load(config, demo_run / "autoencoder").train
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
