"""The demo end to end at its smallest size, looked at from outside."""

import json

import numpy as np
from bids_validator import bids_errors
from PIL import Image

from brainldm.commands.demo import TINY
from brainldm.datasets import bids
from brainldm.datasets.covariates import Covariates
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import read_volume


def test_the_demo_leaves_every_piece_of_the_road(demo_run):
    assert {p.name for p in demo_run.iterdir()} == {
        "population",
        "held_out",
        "autoencoder",
        "diffusion",
        "model",
        "synthetic",
        "report",
    }
    assert len(bids.read_dataset(demo_run / "population", Covariates())) == TINY.people


def test_work_dirs_hold_what_is_promised(demo_run):
    for stage, picture in (("autoencoder", "reconstructions"), ("diffusion", "samples")):
        workdir = demo_run / stage
        assert json.loads((workdir / "config.json").read_text())["stage"] == stage
        facts = json.loads((workdir / "run.json").read_text())
        assert facts["parameters"] > 10_000 and facts["versions"]["jax"]
        assert list(workdir.glob("events.out.tfevents*"))
        pictures = sorted((workdir / "samples").glob(f"{picture}_*.png"))
        assert len(pictures) >= 2
        assert np.asarray(Image.open(pictures[-1]).convert("L")).std() > 10
        assert Image.open(workdir / "progress.png").size == (800, 450)


def test_generated_brains_are_marked_and_lie_on_the_training_grid(demo_run):
    records = bids.read_dataset(demo_run / "synthetic", Covariates())
    wanted = bids.read_dataset(demo_run / "held_out", Covariates())
    assert [r.covariates for r in records] == [r.covariates for r in wanted]
    grid = training_grid(4)
    for record in records:
        volume = read_volume(record.path)
        assert volume.data.shape == grid.shape
        np.testing.assert_array_equal(volume.affine, grid.affine)
        assert 0 <= volume.data.min() and volume.data.max() <= 1.0001
    assert json.loads((demo_run / "synthetic/T1w.json").read_text())["Synthetic"] is True
    assert "synthetic" in (demo_run / "synthetic/README").read_text()


def test_the_official_validator_finds_no_error_in_the_generated_dataset(demo_run):
    assert bids_errors(demo_run / "synthetic") == []


def test_the_report_is_whole_and_needs_no_network(demo_run):
    page = next((demo_run / "report").glob("*.html")).read_text()
    figures = json.loads((demo_run / "report/report.json").read_text())
    assert "data:image/png;base64," in page
    assert "stand-in" in page
    assert 'src="http' not in page and 'href="http' not in page
    assert figures
