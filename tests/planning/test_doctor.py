"""What `doctor` says of an installation and a machine."""

import importlib.metadata
import json

import jax
import pytest

from brainldm.cli import main
from brainldm.planning import doctor


def found(what):
    return next(finding for finding in doctor.examine() if finding.what == what)


def test_this_installation_is_as_it_should_be(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = {entry["what"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert findings["jax"]["found"] == jax.__version__ and not findings["jax"]["to_do"]
    assert "cpu" in findings["devices"]["found"] and set(doctor.PACKAGES) < set(findings)


@pytest.mark.parametrize(
    "version, said", [("0.10.1", "wrong results"), ("0.9.0", "Outside the range"), (None, "Install brainldm again")]
)
def test_versions_that_do_not_work_are_named(monkeypatch, version, said, capsys):
    real = importlib.metadata.version

    def claimed(name):
        if name == "jax" and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "jax" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", claimed)
    assert said in found("jax").to_do
    assert main(["doctor"]) == 1
    assert "Not as it should be: jax" in capsys.readouterr().err


def test_a_gpu_that_jax_does_not_use_is_named(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU 0: Made up (UUID: 1)"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "GPU 0: Made up" in found("NVIDIA GPU").found and "cuda13" in found("NVIDIA GPU").to_do


def test_what_fits_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "device_memory", lambda: 38e9)
    assert found("full size: generate").found.startswith("one GPU")
    monkeypatch.setattr(doctor, "device_memory", lambda: 1e9)
    assert found("full size: generate").found == "does not fit this GPU"


def test_a_cache_that_cannot_be_kept_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "brainldm").write_text("a file")
    assert "every start compiles anew" in found("compiled programs").found
