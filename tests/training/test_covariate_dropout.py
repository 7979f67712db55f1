"""Conditions dropped one by one in training, and left out one by one in generation."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import save_random_model

from brainldm.cli import main
from brainldm.datasets.covariates import Covariates, parse_extra
from brainldm.diffusion.sampling import Sampling
from brainldm.evaluation.datasets import open_datasets
from brainldm.generation.conditions import check_conditions, draw_conditions
from brainldm.generation.dataset import Settings, generate
from brainldm.generation.manifest import read_manifests
from brainldm.runtime.errors import UserError
from brainldm.training import diffusion
from brainldm.training.flags import load_config
from brainldm.weights.model_folder import load_model

LEVELS = "scanner=A|B|C"


KEY, NULL = jax.random.key(3), jnp.full(7, -1.0)
OWNER = np.array([0, 1, 2, 3, 4, 4, 4])  # the last covariate has three levels


def test_each_condition_is_dropped_by_itself_and_its_levels_together():
    seen = diffusion.drop_conditions(KEY, jnp.full((4000, 7), 0.5), jnp.full(7, jnp.nan), 0.1, 0.3, OWNER)
    missing = np.isnan(seen)
    assert (missing[:, 4] == missing[:, 5]).all() and (missing[:, 5] == missing[:, 6]).all()
    assert (np.asarray(seen)[~missing] == 0.5).all()
    some = missing[~missing.all(1)][:, :5]
    assert np.abs(missing.mean(0) - (0.1 + 0.9 * 0.3)).max() < 0.03
    assert np.abs(np.corrcoef(some.T) - np.eye(5)).max() < 0.06
    assert missing.all(1).mean() == pytest.approx(0.1, abs=0.03)


def test_without_it_the_null_condition_stands_for_all_or_none():
    seen = np.asarray(diffusion.drop_conditions(KEY, jnp.full((400, 7), 0.5), NULL, 0.5, 0.0, OWNER))
    dropped = (seen == -1).all(1)
    assert ((seen == 0.5).all(1) | dropped).all() and 0.4 < dropped.mean() < 0.6
    before = jax.random.uniform(KEY, (400,)) < 0.5
    np.testing.assert_array_equal(dropped, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of tiny networks with random numbers that takes any subset of its conditions."""
    config = load_config("demo_ldm:tiny", {"data.path": "people"}).unlock()
    config.loss.covariate_dropout = 0.2
    autoencoder = load_config("demo_autoencoder:tiny", {"data.path": "people"})
    return load_model(save_random_model(tmp_path_factory.mktemp("subset") / "model", autoencoder, config))


def test_a_model_folder_says_that_conditions_may_be_left_out(model):
    assert model.spec.takes_subsets
    assert not dataclasses.replace(model.spec, unet={**model.spec.unet, "condition_flags": False}).takes_subsets
    config = load_config("demo_ldm:tiny", {"data.path": "people"})
    assert "condition_flags" not in diffusion.unet_arguments(config, 8, 4)


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    """A dataset of brains for which some conditions were left out."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    rows = [{"age": 70.0}, {"age": 60.0}, {"age": 65.0, "sex": "M"}]
    generate(model, out, rows, Settings(Sampling(1, guidance=2.0), batch_size=3))
    return out


def test_what_was_left_out_is_not_said(drawn):
    lines = (drawn / "participants.tsv").read_text().splitlines()
    assert lines[0].split("\t")[1:5] == ["sex", "age", "ventricles_ml", "brain_ml"]
    assert [line.split("\t")[1:5] for line in lines[1:]] == [
        ["n/a", "70.0", "n/a", "n/a"],
        ["n/a", "60.0", "n/a", "n/a"],
        ["M", "65.0", "n/a", "n/a"],
    ]
    assert [entry["conditions"] for entry in read_manifests(drawn)][1] == {"age": 60.0}
    description = json.loads((drawn / "dataset_description.json").read_text())
    assert description["ConditionsLeftOut"] is True


def test_what_was_asked_of_no_brain_is_no_obstacle_to_an_evaluation(drawn, tmp_path):
    copy = shutil.copytree(drawn, tmp_path / "out")
    table = copy / "participants.tsv"
    table.write_text(table.read_text().replace("\tM\t", "\tn/a\t"))
    made, _ = open_datasets(copy, copy)
    assert [record.covariates for record in made.records] == [{"age": 70.0}, {"age": 60.0}, {"age": 65.0}]


def test_only_what_is_named_is_drawn_and_the_rest_is_as_it_was():
    covariates = Covariates()
    every = draw_conditions(covariates, 3, 5, {"age": "60:75", "sex": "F"})
    some = draw_conditions(covariates, 3, 5, {"age": "60:75", "sex": "F"}, subset=True)
    assert some == [{"sex": row["sex"], "age": row["age"]} for row in every]


def test_whoever_asks_for_less_than_a_model_needs_is_told(demo_run, tmp_path, capsys):
    assert main(["generate", str(demo_run / "model"), str(tmp_path / "out"), "--age", "60", "--only-asked"]) == 2
    assert "needs all its conditions" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_that_learnt_with_all_conditions_refuses_a_subset():
    with pytest.raises(UserError, match="Brain 1: sex, ventricles_ml, brain_ml is not given.*covariate_dropout"):
        check_conditions([{"age": 70.0}], Covariates(), False)
    assert check_conditions([{"age": 70.0}, {"age": 99.0}], Covariates(), True, subset=True) == [False, True]
    with pytest.raises(UserError, match="too far off"):
        check_conditions([{"age": 1e9}], Covariates(), True, subset=True)


def test_absent_conditions_are_encoded_as_nothing():
    covariates = Covariates((*Covariates(), parse_extra(LEVELS)))
    encoded = covariates.encode([{"age": 63.0}, {"scanner": "B"}])
    np.testing.assert_array_equal(np.isnan(encoded), [[1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    assert covariates.parse({"age": "63", "sex": "n/a"}, "here", subset=True) == {"age": 63.0}
