"""One, two and four processes train alike, and each goes on from what the others saved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from process_group import ProcessGroup, make_dataset

from brainldm.training.metrics import read_metrics

# a minute or two where nothing else runs
pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

TOLERANCE = 1e-5  # relative: sums are taken in another order


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The config file of a small dataset and network."""
    return make_dataset(tmp_path_factory.mktemp("world"))


def train(config: Path, workdir: Path, count: int, steps: int) -> Path:
    with ProcessGroup(config, workdir, count, f"--config.num_steps={steps}") as crew:
        assert crew.wait(900) == [0] * count, crew.log(0)
        for index in range(1, count):
            assert "to train on and" not in crew.log(index)  # process 0 alone says what goes on
    return workdir


@pytest.fixture(scope="module")
def alone(world) -> Path:
    """One process, eight steps, encoding the scans first."""
    return train(world, world.parent / "alone", 1, 8)


@pytest.fixture(scope="module")
def four(world, alone) -> Path:
    """Four processes, six steps."""
    return train(world, world.parent / "four", 4, 6)


def assert_same_curve(one: Path, other: Path, last: int) -> None:
    for split in ("train", "validation"):
        expected, found = read_metrics(one, split), read_metrics(other, split)
        keep = np.asarray(expected["step"]) <= last
        assert found["step"] == list(np.asarray(expected["step"])[keep]) and len(found["step"]) > 1
        for name in expected:
            np.testing.assert_allclose(found[name], np.asarray(expected[name])[keep], rtol=TOLERANCE, err_msg=name)


def test_four_processes_train_as_one(alone, four):
    assert_same_curve(alone, four, 6)
    facts = json.loads((four / "run.json").read_text())
    assert facts["device"].startswith("4 x") and (four / "config.json").exists()
    losses = read_metrics(four, "train")["loss"]
    assert len(set(losses)) == len(losses)  # every step saw another batch


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_of_four_goes_on_with_fewer(world, alone, four, tmp_path, count):
    workdir = train(world, shutil.copytree(four, tmp_path / "run"), count, 8)
    assert json.loads((workdir / "run.json").read_text())["resumed_from_step"] == 6
    assert_same_curve(alone, workdir, 8)


def test_processes_share_out_the_encoding(world, alone, four, tmp_path):
    """Two processes that encode the scans themselves train on the same latents."""
    with ProcessGroup(world, tmp_path / "run", 2, "--config.num_steps=3", "--config.latents.path=") as crew:
        assert crew.wait(900) == [0, 0], crew.log(0)
    losses = read_metrics(tmp_path / "run", "train")["loss"]
    np.testing.assert_allclose(losses, read_metrics(alone, "train")["loss"][:3], rtol=TOLERANCE)
