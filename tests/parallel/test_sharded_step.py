"""A training step of the autoencoder stage and a sampler on eight virtual devices: equal to one device's, and split."""

import json
import os
import re
import subprocess
import sys

import pytest

SHARDED = ("space", "fsdp", "zero1", "space_to_depth")


@pytest.fixture(scope="module")
def found(tmp_path_factory, repository):
    """What eight_devices.py found."""
    out = tmp_path_factory.mktemp("parallel") / "found.json"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    # By -m from the checkout's root, so that the package is this one.
    command = [sys.executable, "-m", "tests.parallel.eight_devices", str(out)]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", SHARDED)
def test_losses_and_gradients_equal_those_of_one_device(found, case):
    assert found[case]["metrics"] < 1e-5
    assert found[case]["gradients"] < 1e-5


@pytest.mark.parametrize("case", SHARDED)
def test_neighbours_exchange_edges_and_no_activation_is_gathered(found, case):
    assert found[case]["collectives"]["collective-permute"] > 20
    assert set(found[case]["gathered"]) <= set(found[case]["kernels"])
    assert "all-to-all" not in found[case]["collectives"]
    assert bool(found[case]["gathered"]) == (case in ("fsdp", "zero1"))


@pytest.mark.parametrize("case", SHARDED)
def test_memory_of_a_step_falls_with_the_devices(found, case):
    alone = "space_to_depth on one device" if case == "space_to_depth" else "one device"
    assert found[case]["bytes"] < found[alone]["bytes"] / 3


def test_samples_of_a_batch_that_is_split_are_those_of_one_device(found):
    assert found["samples"]["devices"] == 8
    assert found["samples"]["difference"] < 1e-5


def test_rules_decide_which_arrays_are_cut(found):
    def cut(case, start):
        return [parts for name, parts in found[case]["parts"].items() if name.startswith(start) and "kernel" in name]

    assert set(cut("space", "")) == {1}
    for start in ("params/", "opt_state/", "discriminator/", "discriminator_opt_state/"):
        parts = cut("fsdp", start)
        # a kernel with an odd number of outputs and inputs is cut along its taps, or not at all
        assert len(parts) > 3 and parts.count(2) >= 0.8 * len(parts)
    assert set(cut("zero1", "params/") + cut("zero1", "discriminator/")) == {1}
    assert cut("zero1", "opt_state/") == cut("fsdp", "opt_state/")


@pytest.mark.parametrize(
    "case, says",
    [
        ("volume", "config.mesh.space is 8, but a side of 160 voxels is 20 .* which 8 does not divide. 10 would"),
        ("devices", "multiply to 3, which does not divide the 8 devices of this run. 2 would"),
        ("batch", "config.batch_size 3 .* over 8 devices .* The nearest that works is 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(found, case, says):
    code, message = found["messages"][case]
    assert code == 2 and re.search(says, message), message
