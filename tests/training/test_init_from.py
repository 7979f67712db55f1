"""Runs that begin with a network of a model folder: what is taken, said, noted and refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import save_random_model

from brainldm.cli import main
from brainldm.population.population import write_population
from brainldm.runtime.errors import UserError
from brainldm.training.flags import load_config
from brainldm.training.stage import mesh_of
from brainldm.training.stages import make_stage
from brainldm.weights.model_folder import load_model
from brainldm.weights.starting_point import starting_point

SCALE = 0.25


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset `people` and a model folder `model`."""
    root = tmp_path_factory.mktemp("begun")
    write_population(root / "people", 4, 4, seed=2)
    configs = (load_config(f"demo_{stage}:tiny", {"data.path": "people"}) for stage in ("autoencoder", "ldm"))
    save_random_model(root / "model", *configs, latent_scale=SCALE)
    return root


def _loaded(root, stage, workdir, **changes):
    """The loaded stage of a tiny run that begins with the model, and a fresh state of zeros."""
    given = {"data.path": str(root / "people"), "init_from": str(root / "model"), "data.validation_fraction": 0.5}
    if stage == "ldm":
        given["autoencoder"] = str(root / "model")
    config = load_config(f"demo_{stage}:tiny", {**given, **changes})
    made = make_stage(config, mesh_of(config))
    loaded = made.load(workdir)
    return loaded, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(loaded.init))


def _assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_an_autoencoder_begins_as_that_of_the_model(root, tmp_path, capsys):
    loaded, fresh = _loaded(root, "autoencoder", tmp_path)
    model = load_model(root / "model")
    state = loaded.begin(fresh)
    _assert_same(state.params, model.autoencoder)
    _assert_same(state.discriminator, fresh.discriminator)
    noted = loaded.run_info["init_from"]
    assert noted["model"] == "model" and noted["sha256"] == model.sha256
    assert 0.3 < noted["intensity"] < 0.9 and noted["latents_sd"] > 0
    said = capsys.readouterr().err
    assert "begins with the autoencoder of" in said and f"mean intensity is {noted['intensity']:.3f}" in said
    assert "Look at config.data.scaling" in said  # random numbers reconstruct nothing


def test_a_denoising_network_begins_as_that_of_the_model_with_its_latent_scale(root, tmp_path, capsys):
    loaded, fresh = _loaded(root, "ldm", tmp_path)
    model = load_model(root / "model")
    state = loaded.begin(fresh)
    _assert_same(state.params, model.unet)
    _assert_same(state.ema, model.unet)
    assert loaded.run_info["latent_scale"] == SCALE
    noted = loaded.run_info["init_from"]
    said = capsys.readouterr().err
    assert "begins with the denoising network of" in said and "another" not in said
    assert f"standard deviation of {noted['latents_sd']:.3f} where its own had 1" in said
    # A run that goes on needs the folder no more.
    (tmp_path / "run.json").write_text(json.dumps({"init_from": noted}))
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "12" / "SHA256SUMS").write_text("")
    again, _ = _loaded(root, "ldm", tmp_path, init_from="gone")
    assert again.run_info["init_from"] == noted and again.run_info["latent_scale"] == SCALE


def test_other_objectives_and_conditions_are_said(root, tmp_path, capsys):
    changes = {"loss.prediction": "flow", "covariates.ranges.age": (20.0, 90.0)}
    _loaded(root, "ldm", tmp_path, **changes)
    said = capsys.readouterr().err
    assert "another prediction or noise schedule" in said and "conditions have other names, ranges" in said


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("autoencoder", ["--config.model.channels=(4,8,16)"], "channels [4, 8, 8] there, [4, 8, 16] here"),
        ("autoencoder", ["--config.model.norm_num_groups=2"], "norm_num_groups 4 there, 2 here"),
        ("ldm", ["--config.model.null_condition=-1"], "null_condition"),
        ("ldm", ["--config.loss.covariate_dropout=0.1"], "of another shape"),
    ],
)
def test_another_network_is_refused_before_any_work(root, tmp_path, capsys, stage, changes, said):
    command = ["train", "--config", f"demo_{stage}:tiny", "--workdir", str(tmp_path / "run")]
    given = [f"--config.data.path={root / 'people'}", f"--config.init_from={root / 'model'}"]
    if stage == "ldm":
        given.append(f"--config.autoencoder={root / 'model'}")
    assert main([*command, *given, *changes]) == 2
    message = capsys.readouterr().err
    assert said in message and "is another network than config.model describes" in message
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no readable SHA256SUMS"):
        starting_point(tmp_path, "unet", {}, {})


def test_the_model_folder_of_a_run_says_what_it_began_with(demo_run, tmp_path):
    from brainldm.release.export import export

    for stage, number in (("autoencoder", "1"), ("diffusion", "2")):
        shutil.copytree(demo_run / stage, tmp_path / stage)
        facts = json.loads((tmp_path / stage / "run.json").read_text())
        facts["init_from"] = {"model": "older", "sha256": number * 64}
        (tmp_path / stage / "run.json").write_text(json.dumps(facts))
    export(tmp_path / "autoencoder", tmp_path / "diffusion", tmp_path / "model")
    provenance = load_model(tmp_path / "model").spec.provenance
    assert provenance["init_from"] == {"autoencoder": "1" * 64, "unet": "2" * 64}
    assert "init_from" not in load_model(demo_run / "model").spec.provenance
