"""The brain-age network from training to the verdict of an evaluation: one tiny run."""

import json
import shutil

import jax
import numpy as np
import pytest

from brainldm.cli import main
from brainldm.data.pipeline import load_image
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.covariates import AGE, Covariates
from brainldm.evaluation.brain_age import require_grid
from brainldm.population.population import write_population
from brainldm.runtime.errors import UserError
from brainldm.training import loop, restore
from brainldm.training.config import brain_age_config, validate
from brainldm.training.flags import load_config
from brainldm.training.inputs import read_splits
from brainldm.training.metrics import read_metrics
from brainldm.volumes.grids import training_grid
from brainldm.weights.brain_age_folder import load_brain_age

LAST, BEFORE = 6, 3


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A dataset whose table holds ages alone."""
    root = tmp_path_factory.mktemp("people") / "people"
    write_population(root, 10, 4, seed=3)
    rows = [line.split("\t") for line in (root / "participants.tsv").read_text().splitlines()]
    place = rows[0].index("age")
    (root / "participants.tsv").write_text("".join(f"{row[0]}\t{row[place]}\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def run(people, tmp_path_factory):
    """The work dir and the model folder."""
    root = tmp_path_factory.mktemp("brain_age")
    loop.train(load_config("brain_age:tiny", {"data.path": str(people)}), root / "run")
    assert main(["export", str(root / "run"), str(root / "model")]) == 0
    return root / "run", root / "model"


def test_held_out_ages_are_told_in_years(run, people):
    workdir, folder = run
    held_out = read_metrics(workdir, "validation")
    assert held_out["step"] == [BEFORE, LAST] and held_out["loss"] == held_out["mae"]
    model = load_brain_age(folder)
    scans = read_dataset(people, Covariates((AGE,)))
    names = json.loads((workdir / "run.json").read_text())
    assert model.spec.held_out["n"] == names["scans_validation"] >= 3
    assert model.spec.held_out["mae"] == held_out["mae"][-1] and model.spec.held_out["r"] == held_out["r"][-1]
    # Far off after six steps; but in years, and the same as what the folder's network tells.
    config = restore.read_config(workdir)
    validation = read_splits(config)[0]["validation"]
    images = np.stack([load_image(scan, training_grid(4)) for scan in validation])[..., None]
    told, features = jax.jit(model.tell)(images)
    ages = [scan.covariates["age"] for scan in validation]
    assert np.abs(np.asarray(told) - ages).mean() == pytest.approx(held_out["mae"][-1], rel=1e-4)
    assert features.shape == (len(ages), 4) and len(scans) == 10


def test_a_continued_run_equals_an_undisturbed_one(run, tmp_path):
    straight, _ = run
    workdir = shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(workdir / f"checkpoints/{LAST}")
    config = restore.read_config(workdir)
    loop.train(config, workdir)
    one, two = (restore.restore_state(config, folder) for folder in (straight, workdir))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_the_verdict_on_generated_brains_comes_after_what_the_network_is_worth(run, people, tmp_path, capsys):
    _, folder = run
    made = tmp_path / "made"
    write_population(made, 8, 4, seed=9)
    out = tmp_path / "report"
    command = ["evaluate", str(made), str(people), str(out), "--pairs", "2", "--brain-age", str(folder)]
    assert main(command) == 0
    said = capsys.readouterr().out
    worth = f"on {load_brain_age(folder).spec.held_out['n']:g} scans that it was not trained on: mean absolute error"
    assert said.index(worth) < said.index("Age, requested against told: r ")
    assert "Age, label against told, real: r " in said and "FID" not in said
    figures = json.loads((out / "report.json").read_text())["brain_age"]
    assert (figures["agreement"]["synthetic"]["n"], figures["agreement"]["real"]["n"]) == (8, 10)
    assert figures["features"]["distance"].startswith("Frechet distance (brain-age network")
    assert figures["features"]["features"] == 4 and figures["features"]["real"]["n"] == [5, 5]
    page = (out / "report.html").read_text()
    assert "Age by a network" in page and "not trained on, when it was trained" in page


def test_a_network_of_another_grid_or_of_another_kind_is_refused(run, people, tmp_path, capsys):
    _, folder = run
    with pytest.raises(UserError, match="80x112x80 of 2x2x2 mm"):
        require_grid(load_brain_age(folder), training_grid(2))
    assert main(["generate", str(folder), str(tmp_path / "out")]) == 2
    assert "holds a brain-age network, and a latent diffusion model or an LSGAN" in capsys.readouterr().err


def test_a_run_whose_newest_state_was_not_validated_is_not_exported(run, tmp_path, capsys):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(x for x in lines if f'"step": {LAST}' not in x))
    assert main(["export", str(workdir), str(tmp_path / "model")]) == 2
    assert f"no validation of step {LAST}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("covariates.names", ("sex", "age"), "learns age alone"),
        ("covariates.names", (), "learns age alone"),
        ("model.channels", (8,) * 8, "8 blocks, which leave nothing of 160 voxels at 1 mm; at most 7 are wanted"),
    ],
)
def test_an_impossible_value_is_refused(key, value, said):
    config = brain_age_config().unlock()
    config.data.path = "people"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=said):
        validate(config)
