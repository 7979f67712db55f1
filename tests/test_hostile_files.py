"""Pipes, devices, links that lead to themselves and JSON of another kind, in place of every file that is read."""

import json
import os
import signal

import numpy as np
import pytest

from brainldm.cli import main
from brainldm.datasets.scans import inside
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256, open_regular, parse_line, read_file, read_json
from brainldm.training.restore import read_config
from brainldm.training.run_info import read_run_info
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume
from brainldm.volumes.probe import look_at

DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def no_waiting():
    """What waits for a pipe fails after a while."""

    def late(number, frame):
        raise TimeoutError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def people(tmp_path):
    """A dataset of two scans."""
    grid, root = training_grid(4), tmp_path / "people"
    content = np.zeros(grid.shape, np.float32)
    content[10:-10, 10:-10, 10:-10] = np.random.default_rng(0).random((20, 36, 20))
    for name in ("sub-1", "sub-2"):
        (root / name / "anat").mkdir(parents=True)
        write_volume(root / name / f"anat/{name}_T1w.nii", content, grid.affine)
        content = content * 0.9
    rows = ["participant_id\tsex\tage\tventricles_ml\tbrain_ml", *(f"sub-{k}\tF\t6{k}\t20\t1400" for k in (1, 2))]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def loop(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("instead", [pipe, loop, device])
def test_a_scan_that_is_no_file_is_left_out_and_said(instead, people, capsys):
    instead(people / "sub-2/anat/sub-2_T1w.nii")
    assert main(["check", str(people)]) == 0
    said = capsys.readouterr().out
    assert "sub-2" in said and "Traceback" not in said


@pytest.mark.parametrize("instead", [pipe, device])
@pytest.mark.parametrize("name", ["participants.tsv", "participants.json"])
def test_a_table_that_is_no_file_is_refused(instead, name, people, capsys):
    instead(people / name)
    assert main(["check", str(people)]) == 2
    said = capsys.readouterr().err
    assert f"{name}: cannot be read, it is a pipe" in said or f"{name}: a symbolic link leads out" in said


def test_lists_and_configs_that_are_pipes_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipe(tmp_path / "list.txt"), pipe(tmp_path / "config.py")
    for command in (
        "check list.txt",
        "train --config config.py --workdir out",
        "generate model out --participants list.txt",
    ):
        assert main(command.split()) == 2
        said = capsys.readouterr().err
        assert said.startswith("brainldm: ") and ("a pipe" in said or "no such folder" in said)


def test_json_nested_without_end_is_refused(people, capsys):
    (people / "participants.json").write_text(DEEP)
    assert main(["check", str(people)]) == 2
    assert "nested too deep" in capsys.readouterr().err
    (people / "participants.json").unlink()
    (people / "dataset_description.json").write_text(DEEP)
    assert main(["check", str(people)]) == 0
    assert parse_line(DEEP) == {} and parse_line("[1]") == {} and parse_line('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "holds a list"),
        ("null", "holds a NoneType"),
        (DEEP, "not valid JSON .nested too deep"),
        ("{", "not valid JSON"),
        ("1" * 10_000, "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
)
def test_json_of_another_kind_is_refused(content, said, tmp_path):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"a.json: {said}"):
        read_json(tmp_path / "a.json")


def test_what_is_no_file_is_not_read(tmp_path):
    pipe(tmp_path / "pipe"), loop(tmp_path / "loop")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match="where a file is wanted"):
            open_regular(path)
        assert file_sha256(path) is None
    for path, said in (("loop", "symbolic links"), ("none", "No such file"), ("a\0b", "null byte")):
        with pytest.raises(UserError, match=f"cannot be read .*{said}"):
            read_file(tmp_path / path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(UserError, match="11 bytes; nothing of this kind is larger than 10"):
        read_file(tmp_path / "large", most=10)
    assert "a pipe" in look_at(tmp_path / "pipe").problem
    assert inside(tmp_path, tmp_path / "loop") and not inside(tmp_path, "/etc/passwd")


@pytest.mark.parametrize(
    "content, said",
    [
        ({}, "config.stage is None"),
        ({"stage": ["diffusion"]}, "holds no config of a training run"),
        ({"stage": "autoencoder", "model": 3}, "holds no config of a training run"),
        ({"stage": "diffusion", "sampling": None}, "holds no config of a training run"),
    ],
)
def test_a_config_json_that_is_none_is_refused(content, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"config.json: {said}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "content, said",
    [
        ({}, "has no latent_shape"),
        ({"latent_shape": "x"}, "latent_shape is 'x'"),
        ({"latent_shape": [1, 2, 3]}, "latent_shape is"),
        ({"latent_shape": [1, 2, 3, 4], "observed": {"age": ["a", 1]}}, "observed is"),
        ({"latent_shape": [1, 2, 3, 4], "demography": []}, "demography is"),
    ],
)
def test_a_run_json_of_other_types_is_refused(content, said, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"run.json.*{said}"):
        read_run_info(tmp_path, "latent_shape")
