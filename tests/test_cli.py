"""The command: help, exit codes, and what a mistake gets."""

import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from brainldm.cli import main
from brainldm.volumes.grids import training_grid

COMMANDS = ("demo", "population", "prepare", "check", "train", "export", "generate", "evaluate", "convert")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"brainldm {command}" in said and "example:" in said and "75" in said


def test_the_module_is_the_command(repository):
    done = subprocess.run(
        [sys.executable, "-m", "brainldm", "--version"],
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "brainldm")


def test_training_through_its_own_door(repository):
    done = subprocess.run(
        [sys.executable, "-m", "brainldm.train", "--config", "configs/demo_ldm.py"],
        capture_output=True,
        text=True,
        cwd=repository,
        check=False,
    )
    assert done.returncode == 2
    assert "--workdir" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def data(demo_run, tmp_path):
    return shutil.copytree(demo_run / "population", tmp_path / "data")


@pytest.fixture
def model(demo_run, tmp_path):
    return shutil.copytree(demo_run / "model", tmp_path / "model")


def scan_of(data):
    return next((data / "sub-0001/anat").glob("*_T1w.nii.gz"))


def spoil(data, change):
    image = nib.load(scan_of(data))
    array = change(np.asarray(image.dataobj, np.float32))
    nib.save(nib.Nifti1Image(array, image.affine), scan_of(data))


def with_nan(array):
    array[20, 20, 20] = np.nan
    return array


def edit_table(data, old, new):
    table = data / "participants.tsv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))


def train(data, out, *more, config="configs/demo_autoencoder.py:tiny"):
    return ["train", "--config", config, "--workdir", str(out), f"--config.data.path={data}", *more]


def generate(model, out, *more):
    return ["generate", str(model), str(out), "--steps", "1", *more]


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


TRAIN_MISTAKES = {
    "misspelt key": (lambda d: None, ["--config.optimizer.learning_rat=1"], "learning_rate"),
    "unknown key": (lambda d: None, ["--config.nonsense=1"], "nonsense"),
    "value of another type": (lambda d: None, ["--config.batch_size=many"], "batch_size"),
    "impossible value": (lambda d: None, ["--config.num_steps=0"], "num_steps is 0"),
    "widths and groups": (
        lambda d: None,
        ["--config.model.norm_num_groups=3"],
        "multiple of norm_num_groups 3",
    ),
    "perceptual without files": (
        lambda d: None,
        ["--config.loss.perceptual=lpips"],
        "perceptual_files is empty",
    ),
    "unknown perceptual": (lambda d: None, ["--config.loss.perceptual=eyes"], "lpips or medicalnet"),
    "missing dataset": (lambda d: shutil.rmtree(d), [], "no such folder"),
    "no table": (lambda d: (d / "participants.tsv").unlink(), [], "no participants.tsv"),
    "no column": (lambda d: edit_table(d, "ventricles_ml", "vol"), [], "no column ventricles_ml"),
    "sex coded strangely": (lambda d: edit_table(d, "\tF\t", "\t2\t"), [], "sex is '2'"),
    "another grid": (
        lambda d: None,
        ["--config.data.spacing_mm=1"],
        "does not fit the training grid 160x224x160",
    ),
    "another shape": (lambda d: spoil(d, lambda a: a[:-2]), [], "38x56x40.* does not fit"),
    "NaN voxels": (lambda d: spoil(d, with_nan), [], "1 voxels are NaN"),
    "4D file": (lambda d: spoil(d, lambda a: np.stack([a, a], -1)), [], "4 dimensions"),
    "damaged file": (lambda d: corrupt(scan_of(d)), [], "damaged"),
}


def check_refusal(capsys, arguments, said):
    import re

    code = main(arguments)
    captured = capsys.readouterr()
    last = [line for line in captured.err.splitlines() if line.startswith("brainldm: ")]
    assert code == 2, captured.err
    assert len(last) == 1 and re.search(said, last[0]), captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_mistakes_in_training(mistake, data, tmp_path, capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    change, more, said = TRAIN_MISTAKES[mistake]
    change(data)
    check_refusal(capsys, train(data, tmp_path / "run", *more), said)
    assert not (tmp_path / "run").exists()


def test_a_config_that_sets_an_unknown_key(data, tmp_path, capsys):
    config = tmp_path / "mine.py"
    config.write_text(
        "from brainldm.training.config import diffusion_config\n"
        "def get_config():\n    c = diffusion_config()\n    c.optimiser.learning_rate = 1\n    return c\n"
    )
    check_refusal(capsys, train(data, tmp_path / "run", config=str(config)), "optimizer")


def test_a_config_that_is_not_there(data, tmp_path, capsys):
    check_refusal(capsys, train(data, tmp_path / "run", config="no/such_config.py"), "no/such_config.py")


def test_a_config_that_is_not_there_and_is_not_overridden(tmp_path, capsys):
    arguments = ["train", "--config", str(tmp_path / "nowhere.py"), "--workdir", str(tmp_path / "run")]
    check_refusal(capsys, arguments, "nowhere.py")


def test_a_work_dir_that_holds_something_else(data, tmp_path, capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("years")
    check_refusal(capsys, train(data, tmp_path / "run"), "already holds something else")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_the_second_stage_needs_the_first(data, tmp_path, capsys, demo_run, repository, monkeypatch):
    monkeypatch.chdir(repository)
    ldm = "configs/demo_ldm.py:tiny"
    check_refusal(capsys, train(data, tmp_path / "run", config=ldm), "config.autoencoder is empty")
    wrong = f"--config.autoencoder={demo_run / 'diffusion'}"
    check_refusal(capsys, train(data, tmp_path / "run", wrong, config=ldm), "that of the autoencoder stage is wanted")
    nowhere = f"--config.autoencoder={tmp_path / 'nowhere'}"
    check_refusal(capsys, train(data, tmp_path / "run", nowhere, config=ldm), "no config.json")


GENERATE_MISTAKES = {
    "condition outside": (lambda m: None, ["--age", "95"], r"age 95 years \(trained on \d\d"),
    "range outside": (lambda m: None, ["--ventricles-ml", "300:400"], "ventricles_ml 3.* mL"),
    "strange sex": (lambda m: None, ["--sex", "7"], "sex is '7'"),
    "no number": (lambda m: None, ["--brain-ml", "big"], "not a number"),
    "none wanted": (lambda m: None, ["--n", "0"], "at least 1"),
    "no table": (lambda m: None, ["--participants", "nowhere.tsv"], "nowhere.tsv: no such"),
    "table and conditions": (
        lambda m: None,
        ["--participants", "x.tsv", "--age", "50"],
        "exclude each other",
    ),
    "weights of labels": (lambda m: None, ["--label-weights", "w.h5"], "Add --labels"),
    "no weights of labels": (lambda m: None, ["--labels", "--label-weights", "absent.h5"], "no file absent.h5"),
    "changed weights": (lambda m: corrupt(m / "unet.safetensors"), [], "SHA-256"),
    "not a model": (lambda m: (m / "SHA256SUMS").unlink(), [], "no readable SHA256SUMS"),
    "no model": (lambda m: shutil.rmtree(m), [], "no such folder"),
}


@pytest.mark.parametrize("mistake", GENERATE_MISTAKES)
def test_mistakes_in_generation(mistake, model, tmp_path, capsys):
    change, more, said = GENERATE_MISTAKES[mistake]
    change(model)
    check_refusal(capsys, generate(model, tmp_path / "out", *more), said)
    assert not (tmp_path / "out").exists()


def test_label_maps_beside_generated_brains(model, tmp_path, capsys):
    """An image in which no brain is found, as untrained networks make them, has none, and the log says so."""
    assert main([*generate(model, tmp_path / "out"), "--labels"]) == 0
    log = capsys.readouterr().err
    for image in (tmp_path / "out").glob("sub-*/anat/*_T1w.nii.gz"):
        name = image.name.removesuffix("_T1w.nii.gz")
        assert (image.parent / f"{name}_desc-weightfree_dseg.nii.gz").exists() != (f"{name} has no label map" in log)
    assert (tmp_path / "out/desc-weightfree_dseg.tsv").read_text().endswith("1\tlateral ventricles\n")


def test_a_model_of_a_later_version(model, tmp_path, capsys):
    import hashlib

    content = json.loads((model / "model.json").read_text())
    before = (model / "model.json").read_bytes()
    content["format_version"] = 2
    (model / "model.json").write_text(json.dumps(content))
    sums = (model / "SHA256SUMS").read_text()
    new = hashlib.sha256((model / "model.json").read_bytes()).hexdigest()
    (model / "SHA256SUMS").write_text(sums.replace(hashlib.sha256(before).hexdigest(), new))
    check_refusal(capsys, generate(model, tmp_path / "out"), "version 2.*reads 'brainldm-model' version 1")


@pytest.mark.parametrize("command", ["demo", "population", "generate", "export", "evaluate", "convert"])
def test_nothing_is_overwritten(command, demo_run, model, data, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    arguments = {
        "demo": ["demo", str(out), "--tiny"],
        "population": ["population", str(out), "--n", "2", "--workers", "1"],
        "generate": generate(model, out),
        "export": ["export", str(demo_run / "autoencoder"), str(demo_run / "diffusion"), str(out)],
        "evaluate": ["evaluate", str(demo_run / "synthetic"), str(data), str(out)],
        "convert": ["convert", str(model), str(out)],
    }[command]
    check_refusal(capsys, arguments, "already holds something else")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    assert (out / "thesis.txt").read_text() == "years"


def test_real_scans_coarser_than_the_generated_ones(demo_run, tmp_path, capsys):
    from brainldm.population.population import write_population

    write_population(tmp_path / "fine", 2, 2)
    arguments = ["evaluate", str(tmp_path / "fine"), str(demo_run / "held_out"), str(tmp_path / "out")]
    check_refusal(capsys, arguments, "40x56x40 .*does not fit the training grid 80x112x80")
    assert not (tmp_path / "out").exists()


def test_another_autoencoder_is_not_exported(demo_run, tmp_path, capsys):
    other = shutil.copytree(demo_run / "autoencoder", tmp_path / "ae")
    shutil.rmtree(other / "checkpoints/24")
    check_refusal(
        capsys,
        ["export", str(other), str(demo_run / "diffusion"), str(tmp_path / "model")],
        "another autoencoder",
    )


def test_population_writes_a_dataset(tmp_path, capsys):
    assert main(["population", str(tmp_path / "out"), "--n", "2", "--seed", "5", "--workers", "1"]) == 0
    assert scan_of(tmp_path / "out").exists()
    image = nib.load(scan_of(tmp_path / "out"))
    np.testing.assert_array_equal(image.affine, training_grid(4).affine)


def test_evaluate_prints_json(demo_run, tmp_path, capsys):
    code = main(
        [
            "evaluate",
            str(demo_run / "synthetic"),
            str(demo_run / "held_out"),
            str(tmp_path / "report"),
            "--json",
        ]
    )
    assert code == 0
    figures = json.loads(capsys.readouterr().out)
    assert (tmp_path / "report/report.json").exists() and figures
