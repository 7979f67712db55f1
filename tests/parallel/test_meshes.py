"""Meshes and rules: sizes, shares of processes, paths, and what is said about those that do not fit."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from brainldm import cli
from brainldm.parallel import mesh as meshes
from brainldm.parallel.sharding import rules_of, state_shardings
from brainldm.runtime.errors import UserError
from brainldm.training.config import autoencoder_config
from brainldm.training.config_files import config_file
from brainldm.training.flags import load_config
from brainldm.training.restore import from_json


@pytest.mark.parametrize(
    "sizes, shape",
    [
        (None, (8, 1, 1, 1)),
        ({"data": -1, "space": 4}, (2, 1, 4, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1, 1)),
        ({"space": 2, "space_y": 4}, (1, 1, 2, 4)),
    ],
)
def test_one_axis_takes_what_the_others_leave(sizes, shape):
    assert meshes.mesh_shape(sizes, 8) == shape


@pytest.mark.parametrize(
    "sizes, says",
    [
        ({"spaces": 2}, "config.mesh.spaces: no such axis. Did you mean space?"),
        ({"data": -1, "space": -1}, "one axis may be -1"),
        ({"data": 0}, "sizes are at least 1"),
        ({"data": -1, "space": 5}, "multiply to 5, which does not divide the 8 devices of this run. 4 would"),
        ({"data": 3, "space": 2}, "takes 6 devices, and this run has 8. config.mesh.data=4 would fit"),
        ({"data": 3, "space": 3}, "Sizes that multiply to 8 would fit"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest_that_do(sizes, says):
    with pytest.raises(UserError, match=says):
        meshes.mesh_shape(sizes, 8)


def test_a_volume_is_divided_at_every_level():
    meshes.check_volume((160, 224, 160), 3, AbstractMesh((1, 1, 4, 7), meshes.AXES))
    with pytest.raises(UserError, match="mesh.space is 8, but a side of 160 voxels is 20 .* 4 levels.* 10 would"):
        meshes.check_volume((160, 224, 160), 3, AbstractMesh((1, 1, 8, 1), meshes.AXES))
    with pytest.raises(UserError, match="mesh.space_y is 8, but a side of 112 voxels is 28 .* 3 levels.* 7 would"):
        meshes.check_volume((80, 112, 80), 2, AbstractMesh((1, 1, 4, 8), meshes.AXES))


def laid_out(processes, fsdp=1):
    """A mesh of which device i is of process processes[i]: [data, fsdp, space, space_y]."""
    devices = np.array([SimpleNamespace(process_index=p) for p in np.ravel(processes)], object)
    devices = devices.reshape(-1, fsdp, np.shape(processes)[-1], 1)
    return SimpleNamespace(devices=devices, shape=dict(zip(meshes.AXES, devices.shape, strict=True)), size=devices.size)


@pytest.mark.parametrize(
    "processes, fsdp, shares",
    [
        ([[0], [0], [1], [1]], 1, [(0, 2), (1, 2)]),
        ([[0, 0], [1, 1], [2, 2], [3, 3]], 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([[0, 1], [2, 3]], 1, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes share each volume
        ([[0, 1, 2, 3]], 1, [(0, 1)] * 4),
    ],
)
def test_each_process_reads_the_rows_that_its_devices_hold(processes, fsdp, shares):
    mesh = laid_out(processes, fsdp)
    assert [meshes.process_shard(mesh, p) for p in range(len(shares))] == shares


def test_rows_of_a_process_that_do_not_follow_each_other_are_refused():
    with pytest.raises(UserError, match="config.mesh.fsdp is 3, and each process has 2 devices.* 2 would work"):
        meshes.process_shard(laid_out([[0], [1], [2], [0], [1], [2]], 3), 0)


SHAPES = {
    "params": {
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 3, 8, 16), "float32")},
        "odd": jax.ShapeDtypeStruct((8, 3), "float32"),
    },
    "opt_state": (jax.ShapeDtypeStruct((), "int32"), {"kernel": jax.ShapeDtypeStruct((16,), "float32")}),
}


def specs(rules, min_size=16, strict=True):
    found = state_shardings(SHAPES, AbstractMesh((1, 4, 1, 1), meshes.AXES), rules_of(rules), min_size, strict)
    return jax.tree.map(lambda s: s.spec, found)


def test_arrays_are_cut_along_their_last_axis_that_divides():
    found = specs("fsdp")
    assert found["params"]["conv"]["kernel"] == P(None, None, None, None, "fsdp")
    assert found["params"]["odd"] == P("fsdp")
    assert found["opt_state"] == (P(), {"kernel": P("fsdp")})


def test_small_arrays_are_not_cut():
    assert specs("fsdp", min_size=17)["opt_state"][1]["kernel"] == P()
    assert all(spec == P() for spec in jax.tree.leaves(specs("fsdp", min_size=10**6)))


def test_the_first_rule_that_matches_decides():
    found = specs("^params/odd=replicate ^params=fsdp")
    assert found["params"]["odd"] == P() == found["opt_state"][1]["kernel"]
    assert found["params"]["conv"]["kernel"] == P(None, None, None, None, "fsdp")
    assert specs("zero1")["params"]["odd"] == P() and specs("zero1")["opt_state"][1]["kernel"] == P("fsdp")
    assert specs(["^params=fsdp"])["params"]["odd"] == P("fsdp")


def test_rules_may_be_pairs():
    pairs = (("^params/odd", "replicate"), ("^params", "fsdp"))
    assert specs(pairs) == specs("^params/odd=replicate ^params=fsdp")
    config = autoencoder_config().unlock()
    config.mesh.rules = pairs
    assert from_json(json.loads(config.to_json())).mesh.rules == pairs
    for text, rules in (("(('kernel', 'fsdp'),)", (("kernel", "fsdp"),)), ("kernel=fsdp", "kernel=fsdp")):
        assert load_config("demo_autoencoder", [f"--config.mesh.rules={text}"]).mesh.rules == rules


def test_a_rule_that_decides_nothing_is_refused():
    with pytest.raises(UserError, match="'kernl' decides about none of the 4 arrays .* nearest to it is '.*kernel'"):
        specs("kernl=fsdp")
    with pytest.raises(UserError, match="'kernel' decides"):  # taken by the rule before it
        specs("params|opt_state=fsdp kernel=replicate")
    assert specs("kernl=fsdp", strict=False)["params"]["odd"] == P()


@pytest.mark.parametrize(
    "rules, says",
    [
        ("fdsp", "'fdsp' is neither .*Did you mean fsdp"),
        ("kernel=shard", "'shard' can be replicate or fsdp"),
        ("[=fsdp", "not a regular expression"),
        ("", "empty"),
        ("fsdp kernel=replicate", "stand alone"),
        ((("kernel", "shard"),), "'shard' can be replicate or fsdp"),
        ((("kernel", "fsdp", "more"),), "is not a pair"),
    ],
)
def test_rules_that_cannot_be_understood_are_refused(rules, says):
    with pytest.raises(UserError, match=says):
        rules_of(rules)


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--config.mesh.space=3", "multiply to 3, which does not divide the 1 devices of this run. 1 would"),
        ("--config.mesh.spce=1", "mesh.spce"),
        ("--config.mesh.rules=fdsp", "Did you mean fsdp"),
    ],
)
def test_the_command_ends_with_exit_code_2(flag, says, tmp_path, capsys):
    train = ["train", "--config", str(config_file("demo_autoencoder")), "--workdir", str(tmp_path / "run")]
    assert cli.main([*train, "--config.data.path=nowhere", flag]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def tpu_slice(sides):
    """The devices of a v5e slice, four to a process as on its hosts."""
    return [
        SimpleNamespace(
            id=x + sides[0] * y,
            platform="tpu",
            device_kind="TPU v5 lite",
            coords=[x, y, 0],
            core_on_chip=0,
            process_index=x // 2 + sides[0] // 2 * (y // 2),
        )
        for y in range(sides[1])
        for x in range(sides[0])
    ]


@pytest.mark.parametrize("space", [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_axes_follow_the_links_of_a_tpu_slice(space):
    """Collectives over groups that do not lie along the links do not compile on a v5e-256."""
    devices = meshes._on_torus((256 // (space[0] * space[1]), 1, *space), tpu_slice((16, 16)))
    for axis in (2, 3):
        for group in np.moveaxis(devices, axis, -1).reshape(-1, devices.shape[axis]):
            x, y = (sorted({device.coords[i] for device in group}) for i in (0, 1))
            assert min(len(x), len(y)) == 1
    parts = devices.shape[0]
    mesh = SimpleNamespace(devices=devices, shape=dict(zip(meshes.AXES, devices.shape, strict=True)), size=devices.size)
    shares = [meshes.process_shard(mesh, process) for process in range(64)]
    assert {share for share, _ in shares} == set(range(shares[0][1])) and parts % shares[0][1] == 0
