"""Further columns as conditions: from a config through the model and the generator into the report."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from brainldm.cli import main
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.conditions import draw_conditions
from brainldm.runtime.errors import UserError
from brainldm.training.config import autoencoder_config, covariates_of, diffusion_config, validate
from brainldm.weights.model_folder import load_model, unet_shapes

EXTRA = ("site=Leeds|York|Hull", "icv_ml[mL]=1200:1800")


def with_extra(*texts, config=diffusion_config):
    made = config()
    made.covariates.extra = texts
    return made


@pytest.mark.parametrize("config", [autoencoder_config, diffusion_config])
def test_a_config_names_further_conditions(config):
    covariates = covariates_of(with_extra(*EXTRA, config=config))
    assert covariates.names == ("sex", "age", "ventricles_ml", "brain_ml", "site", "icv_ml")
    assert covariates.width == 4 + 3 + 1
    assert covariates_of(config()) == Covariates()


def test_conditions_can_be_left_out_and_added_at_once():
    config = with_extra("site=A|B")
    config.covariates.names = ("age",)
    assert covariates_of(config).names == ("age", "site")


def test_a_config_of_before_further_conditions():
    config = diffusion_config().unlock()
    del config.covariates.extra
    assert covariates_of(config) == Covariates()


@pytest.mark.parametrize("text, said", [("age=40:80", "standard conditions"), ("icv", "no condition")])
def test_impossible_further_conditions(text, said):
    with pytest.raises(UserError, match=said):
        covariates_of(with_extra(text))


@pytest.fixture(scope="module")
def data(demo_run, tmp_path_factory):
    """The demo's people with a site and a head size each, and the first one with a gap."""
    root = shutil.copytree(demo_run / "population", tmp_path_factory.mktemp("sites") / "people")
    lines = (root / "participants.tsv").read_text().splitlines()
    added = [f"{line}\t{('Leeds', 'York', 'Hull')[k % 3]}\t{1300 + 50 * k}" for k, line in enumerate(lines[1:])]
    added[0] = added[0].replace("Leeds", "n/a")
    (root / "participants.tsv").write_text("\n".join([f"{lines[0]}\tsite\ticv_ml", *added]) + "\n")
    return root


@pytest.fixture(scope="module")
def model(demo_run, data, tmp_path_factory, repository):
    """The model folder of one step of the diffusion stage with the further conditions."""
    out = tmp_path_factory.mktemp("model")
    arguments = [
        "train",
        f"--config={repository}/configs/demo_ldm.py:tiny",
        f"--workdir={out / 'run'}",
        f"--config.data.path={data}",
        f"--config.autoencoder={demo_run / 'autoencoder'}",
        f"--config.covariates.extra={EXTRA!r}",
        "--config.data.max_excluded=0.2",
        *("--config.model.channels=(8,)", "--config.model.attention_levels=(True,)"),
        *("--config.model.num_head_channels=(8,)", "--config.num_steps=1"),
        "--config.every.images=0",
    ]
    assert main(arguments) == 0
    assert main(["export", str(demo_run / "autoencoder"), str(out / "run"), str(out / "model")]) == 0
    return out


def test_what_was_left_out_of_a_run_is_listed_in_its_work_dir(model):
    with (model / "run/excluded.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-0001"]
    assert "site is missing" in rows[0]["reason"]
    facts = json.loads((model / "run/run.json").read_text())
    assert facts["scans_training"] + facts["scans_validation"] == 7


def test_the_context_of_the_network_follows(model, demo_run):
    wide, plain = load_model(model / "model"), load_model(demo_run / "model")
    assert (wide.spec.unet["condition_dim"], plain.spec.unet["condition_dim"]) == (8, 4)
    assert wide.spec.covariates["site"].levels == ("Leeds", "York", "Hull")
    narrow = dataclasses.replace(wide.spec, unet={**wide.spec.unet, "condition_dim": 4}).make_unet()
    narrow = unet_shapes(narrow, wide.spec.latent_shape, 4)
    assert sum(x.size for x in jax.tree.leaves(wide.unet)) > sum(x.size for x in jax.tree.leaves(narrow))
    card = (model / "model/README.md").read_text()
    assert "site: Leeds, York or Hull" in card and "icv_ml: 1200 to 1800 mL" in card


@pytest.fixture(scope="module")
def synthetic(model):
    out = model / "synthetic"
    asked = ["--condition", "site=york", "--condition", "icv_ml=1400:1500", "--age", "60", "--extrapolate"]
    assert main(["generate", str(model / "model"), str(out), "--n", "2", "--steps", "1", *asked]) == 0
    return out


def test_brains_are_drawn_with_further_conditions(synthetic):
    with (synthetic / "participants.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["site"] for row in rows] == ["York", "York"]
    assert all(1400 <= float(row["icv_ml"]) <= 1500 and row["age"] == "60.0" for row in rows)
    described = json.loads((synthetic / "participants.json").read_text())
    assert described["icv_ml"]["Units"] == "mL" and set(described["site"]["Levels"]) == {"Leeds", "York", "Hull"}


def test_the_report_lists_them(synthetic, data, model):
    assert main(["evaluate", str(synthetic), str(data), str(model / "report")]) == 0
    figures = json.loads((model / "report/report.json").read_text())
    assert figures["conditions"]["site"] == {"synthetic": "York 2", "real": "Hull 2, Leeds 2, York 3"}
    page = (model / "report/report.html").read_text()
    assert "icv_ml" in page and "York 2" in page


def test_the_network_sees_the_further_conditions(model):
    from brainldm.generation.sampler import make_sampler

    loaded = load_model(model / "model")
    rng = np.random.default_rng(0)
    # after one step its last layer is still nearly zero, and the conditions move nothing
    moved = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), loaded.unet)
    sampler = make_sampler(dataclasses.replace(loaded, unet=moved), Sampling(1), batch_size=1)
    row = draw_conditions(loaded.spec.covariates, 1, 0, {})[0]
    conditions = loaded.spec.covariates.encode([{**row, "site": site} for site in ("Leeds", "Hull", "Leeds")])
    brains = [sampler(0, np.array([0]), one[None]) for one in conditions]
    np.testing.assert_array_equal(brains[0], brains[2])
    assert np.abs(brains[0] - brains[1]).max() > 1e-3


MISTAKES = {
    "unknown": (["--condition", "height=170"], "no condition 'height'.*site, icv_ml"),
    "no value": (["--condition", "site"], "is no NAME=VALUE"),
    "empty": (["--condition", "site="], "is no NAME=VALUE"),
    "twice": (["--condition", "site=Hull", "--condition", "site=York"], "is given twice"),
    "flag and condition": (["--age", "60", "--condition", "age=61"], "is given twice"),
    "no level": (["--condition", "site=Bath"], "Leeds, York or Hull"),
    "outside": (["--condition", "icv_ml=3000"], r"icv_ml 3000 mL \(trained on 1[234]\d\d"),
    "upside down": (["--condition", "icv_ml=1500:1400"], "upside down"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_conditions(mistake, model, tmp_path, capsys):
    more, said = MISTAKES[mistake]
    assert main(["generate", str(model / "model"), str(tmp_path / "out"), *more]) == 2

    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_drawn_levels_are_spread_and_fixed_ones_leave_the_rest():
    covariates = covariates_of(with_extra(*EXTRA))
    rows = draw_conditions(covariates, 60, 1, {})
    assert {row["site"] for row in rows} == {"Leeds", "York", "Hull"}
    fixed = draw_conditions(covariates, 60, 1, {"site": "Hull"})
    assert [row["icv_ml"] for row in fixed] == [row["icv_ml"] for row in rows]


def test_a_diffusion_model_wants_a_condition():
    config = diffusion_config()
    config.data.path = "somewhere"
    config.covariates.names = ()
    with pytest.raises(UserError, match="names no condition"):
        validate(config)
