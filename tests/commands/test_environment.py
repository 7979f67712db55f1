"""Whatever the machine, the shell and the disk do, a command ends with a sentence and its exit code."""

import os
import subprocess
import sys

import pytest

from brainldm.cli import main

LONG = "n" * 300

OUTPUTS = {
    "population": ["population", "OUT", "--n", "1"],
    "prepare": ["prepare", "nowhere", "OUT"],
    "generate": ["generate", "nowhere", "OUT"],
    "export": ["export", "nowhere", "nowhere", "OUT"],
    "convert": ["convert", "nowhere", "OUT"],
    "evaluate": ["evaluate", "nowhere", "nowhere", "OUT"],
    "measure": ["measure", "nowhere", "OUT"],
    "demo": ["demo", "OUT", "--tiny"],
    "check": ["check", "nowhere", "--html", "OUT"],
    "train": ["train", "--config", "demo_ldm:tiny", "--workdir", "OUT", "--config.data.path=nowhere"],
}


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize("place", ["/proc/brainldm/x", "file/x", LONG, "loop/x"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(command, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    assert main([place if part == "OUT" else part for part in OUTPUTS[command]]) == 2
    said = capsys.readouterr().err
    assert said.startswith("brainldm: ") and said.count("\n") == 1
    assert "cannot be written to" in said or "is longer than" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "brainldm", *map(str, arguments)],
        stdout=stdout,
        stderr=stderr,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["population", "--help"]])
def test_a_full_disk_behind_standard_output_is_a_failure_that_is_said(arguments):
    with open("/dev/full", "w") as full:
        done = run(arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("brainldm: No space left") and "Traceback" not in done.stderr


def test_closed_and_full_streams_change_no_exit_code(tmp_path):
    for closed in ("2>&-", ">&-", "2>/dev/full", ">&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m brainldm check "$1" {closed}', sys.executable, str(tmp_path / "nowhere")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_letters_that_the_shell_does_not_have_are_written_as_their_codes(tmp_path):
    done = run(["check", tmp_path / "Größe"], PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith("brainldm: ") and r"\xf6" in done.stderr


def test_names_that_no_file_could_hold_are_refused_before_any_work(tmp_path):
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(["population", tmp_path / "Größe"], **poor)
    assert done.returncode == 2
    assert "PYTHONUTF8=1" in done.stderr and done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_platform_that_jax_does_not_have_is_named(tmp_path):
    done = run(["evaluate", tmp_path, tmp_path, tmp_path / "out", "--model", tmp_path], JAX_PLATFORMS="bogus")
    assert done.returncode == 2
    assert "Set JAX_PLATFORMS" in done.stderr and "Traceback" not in done.stderr
