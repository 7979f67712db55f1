"""`brainldm check`: exit codes, forms of the report, and datasets of many scans."""

import json
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from brainldm.cli import main
from brainldm.datasets.bids import image_path
from brainldm.population.population import write_population
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Four people's covariates and noise on the 4 mm grid."""
    root = tmp_path_factory.mktemp("check") / "people"
    grid = training_grid(4)
    rows = ["participant_id\tage\tsex\tventricles_ml\tbrain_ml"]
    for i in range(4):
        path = image_path(root, f"sub-{i}")
        path.parent.mkdir(parents=True)
        write_volume(path, np.random.default_rng(i).random(grid.shape, np.float32), grid.affine)
        rows.append(f"sub-{i}\t{60 + i}\t{'FM'[i % 2]}\t{30 + i}\t{1400 + i}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def test_help_has_an_example_and_says_what_rejected_scans_mean(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert "brainldm check ./" in said and "exit code is 0 as long as one scan is usable" in said


def test_the_embedded_population_is_fit_for_training(tmp_path, capsys):
    write_population(tmp_path / "people", 2, 4)
    assert main(["check", str(tmp_path / "people"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["kind"], figures["counts"]["usable"], figures["rejected"]) == ("prepared", 2, [])
    assert {"age", "sex", "ventricles_ml", "brain_ml", "head_ml"} == {c["name"] for c in figures["columns"]}


def test_a_dataset_of_which_nothing_fits_the_config_has_exit_code_2(people, repository, capsys):
    config = repository / "configs" / "paper_autoencoder.py"
    assert main(["check", str(people), "--json", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["counts"]["usable"] == 0
    assert "none of its scans can be trained on" in said.err and "voxels of 4 mm" in said.err


def test_a_config_brings_its_ranges_grid_and_sizes(people, repository, capsys):
    config = repository / "configs" / "demo_autoencoder.py"
    assert main(["check", str(people), "--json", "--config", str(config)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["grid"] == {"shape": [40, 56, 40], "spacing_mm": 4.0}
    assert "10x14x10x" in next(cost["how"] for cost in figures["costs"] if cost["stage"] == "encoding latents")


def test_the_page_is_written(people, tmp_path, capsys):
    page = tmp_path / "new" / "check.html"
    assert main(["check", str(people), "--html", str(page)]) == 0
    assert "can be trained on (prepared, 40x56x40 voxels of 4 mm)" in capsys.readouterr().out
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main(["check", str(people), "--html", str(tmp_path)]) == 2


@pytest.mark.parametrize("flags", (["--workers", "0"], ["--sample", "-1"], ["--config", "nowhere.py"]))
def test_mistakes_have_exit_code_2_and_a_message(people, flags, capsys):
    assert main(["check", str(people), *flags]) == 2
    assert capsys.readouterr().err.count("brainldm: ") == 1


def test_nothing_there_or_nothing_usable_has_exit_code_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    assert main(["check", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "Would be rejected (1)" in said.out and "none of its scans can be read" in said.err


@pytest.mark.timeout(120)
def test_thousands_of_scans_take_seconds_and_little_memory(tmp_path):
    """A tenth of UK Biobank: the outside of every file, the inside of few."""
    rng = np.random.default_rng(0)
    header = nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.diag([20.0, 20, 20, 1])).to_bytes()[:352]
    rows = ["participant_id\tage\tsex\tventricles_ml\tbrain_ml"]
    for i in range(4000):
        name = f"sub-{i:05d}"
        folder = tmp_path / name / "anat"
        folder.mkdir(parents=True)
        (folder / f"{name}_T1w.nii").write_bytes(header + rng.bytes(512))
        rows.append(f"{name}\t{45 + i % 35}\t{'FM'[i % 2]}\t{20 + i % 30}\t{1200 + i % 500}")
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "brainldm", "check", str(tmp_path), "--json", "--sample", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["counts"]["scans"], figures["counts"]["read"], figures["counts"]["usable"]) == (4000, 20, 4000)
    assert figures["duplicates"] == []
    # Ten times as many within a minute; processor time, because other work on the machine does not count.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6
    assert figures["measured"]["peak_memory_bytes"] < 2**30
