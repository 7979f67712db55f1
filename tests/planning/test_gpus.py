"""Planning for GPUs: how they are described, what is said without their compiler, and, with it, what it compiles."""

import importlib.util
import json

import pytest

from brainldm.cli import main
from brainldm.planning import compiler
from brainldm.planning.chips import CHIPS, GPU_SHARE
from brainldm.planning.gpus import GPUS, Gpus
from brainldm.planning.targets import find_target

needs_plug_in = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the CUDA plug-in of JAX is not installed: pip install 'brainldm[plan-gpu]'",
)


@pytest.mark.parametrize(("devices", "topology"), [(1, "1x1x1"), (4, "1x1x4"), (8, "1x1x8"), (32, "1x4x8")])
def test_gpus_are_counted_in_machines_of_eight(devices, topology):
    assert Gpus(CHIPS["h100"], devices).topology == topology


def test_descriptions_are_of_the_chip():
    assert GPUS == ("a100", "h100", "h200")
    text = Gpus(CHIPS["a100"], 1).description
    assert "core_count: 108" in text and "major: 8" in text and "memory_bandwidth: 2039000000000" in text
    assert f"device_memory_size: {CHIPS['a100'].capacity:.0f}" in text
    assert CHIPS["a100"].memory == pytest.approx(GPU_SHARE * CHIPS["a100"].capacity)
    assert text.count("{") == text.count("}")


def test_a_chip_and_a_number_name_gpus_or_a_slice():
    assert find_target(None, "h100", None) == (Gpus(CHIPS["h100"], 1), CHIPS["h100"])
    target, chip = find_target(None, "v5p", 4)
    assert (target.name, chip.name) == ("v5p:2x2x1", "v5p")
    assert find_target(None, None, 3) == (3, None)


@pytest.mark.parametrize("arguments", [["--config", "paper_autoencoder:tiny", "--devices", "8"], ["--ladder"]])
def test_without_the_plug_in_what_to_install_is_named(arguments, monkeypatch, capsys):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert main(["plan", "--chip", "h100", *arguments]) == 2
    said = capsys.readouterr().err
    assert "pip install 'brainldm[plan-gpu]'" in said and "Traceback" not in said


def test_a_ladder_is_one_of_gpus(capsys):
    assert main(["plan", "--ladder", "--chip", "v5e"]) == 2
    assert "a100, h100, h200" in capsys.readouterr().err


@pytest.mark.slow
@needs_plug_in
def test_a_program_is_compiled_for_gpus_that_are_not_there(capsys):
    """Two parts of the batch times four of the volume, as on virtual devices."""
    arguments = ["--config", "paper_autoencoder:tiny", "--chip", "h100", "--devices", "8", "--programs", "encode"]
    arguments += ["--config.mesh.space=2", "--config.mesh.data=4", "--config.model.channels=(8,8)", "--no-search"]
    assert main(["plan", *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    encode = plan["programs"]["encode"]
    assert plan["kind"] == "NVIDIA H100 80GB HBM3" and plan["devices"] == 8 and encode["fits"] is True
    kinds = {item["kind"] for item in encode["collectives"]}
    assert "collective-permute" in kinds and "all-gather" not in kinds
    # cuDNN's workspace is allowed for, and the volume is at least read once and the latents written.
    assert encode["memory"]["workspace"] > 0
    assert encode["bytes"] > 40 * 56 * 20 * 4
    assert encode["bound_seconds"] <= encode["step_seconds"]
