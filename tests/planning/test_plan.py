"""Planning: what is read from compiled programs, and the command on virtual devices and, with libtpu, on a TPU."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from brainldm.cli import main
from brainldm.planning import compiler
from brainldm.planning.arithmetic import operations
from brainldm.planning.chips import CHIPS, find_chip, parse_topology
from brainldm.planning.hlo import group_size, read_traffic
from brainldm.planning.plan import make_plan
from brainldm.planning.report import report
from brainldm.planning.search import candidates
from brainldm.planning.times import add_verdict
from brainldm.planning.worker import too_large
from brainldm.runtime.errors import UserError
from brainldm.training.config import autoencoder_config
from brainldm.training.flags import load_config

CONFIGS = Path(__file__).parents[2] / "configs"

# As compilers write it, shortened: a loop of three turns, an asynchronous permute, and the three ways to name groups.
HLO = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %start = (bf16[1,8]{1,0:T(2,128)(2,1)}, bf16[1,8]{1,0:T(2,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=2, source_target_pairs={{1,0},{2,1}}, metadata={op_name="jit(f)/conv"}
  %done = bf16[1,8]{1,0:T(2,128)(2,1)} collective-permute-done(%start)
  %all = bf16[8,8]{1,0} all-gather(%x), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %out = (s32[], bf16[4,8]) tuple(%x, %x)
}

%condition (p.1: (s32[], bf16[4,8])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %p.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %three), direction=LT
}

ENTRY %main_spmd (x.1: bf16[4,8]) -> f32[100] {
  %x.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %loop = (s32[], bf16[4,8]) while(%x.1), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %sums = (f32[100]{0:T(128)}, f32[28]{0}) all-reduce(%x.1, %x.1), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, use_global_device_ids=true, to_apply=%add
}
"""


def test_collectives_are_read_with_counts_bytes_and_loops():
    traffic = read_traffic(HLO, devices=8)
    assert traffic.loops
    found = {item.kind: item for item in traffic.collectives}
    assert set(found) == {"collective-permute", "all-gather", "all-reduce"}
    # three turns of one row of 8 bfloat16
    assert (found["collective-permute"].count, found["collective-permute"].bytes) == (3, 3 * 16)
    # groups of two: half of the result comes from the neighbour
    assert (found["all-gather"].count, found["all-gather"].bytes, found["all-gather"].sent) == (3, 3 * 128, 3 * 64)
    # one operation on two arrays, in groups of four
    assert (found["all-reduce"].count, found["all-reduce"].bytes, found["all-reduce"].sent) == (1, 512, 2 * 0.75 * 512)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 4),
        ("replica_groups=[2,16]<=[4,8]T(1,0)", 16),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=8] {'a','c'}", 16),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", 4),
        ("replica_groups={}", 32),
    ],
)
def test_size_of_replica_groups(text, size):
    assert group_size(text, 32) == size


def test_operations_of_products_convolutions_and_loops():
    a, b = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert operations(lambda a, b: a @ b, a, b) == 2 * 3 * 5 * 7

    def four_times(a, b):
        return jax.lax.scan(lambda total, _: (total + (a @ b).sum(), None), 0.0, None, length=4)[0]

    assert operations(four_times, a, b) == 4 * 2 * 3 * 5 * 7

    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 8, 2), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 2, 4), jnp.float32)

    def strided(x, kernel):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2, 2), [(0, 1)] * 3, dimension_numbers=numbers)

    forward = 2 * 4**3 * 27 * 2 * 4
    assert operations(strided, x, kernel) == forward
    # The gradient to the kernel costs the same, that to the (larger) input as well: zeros between values are no work.
    gradient = operations(jax.grad(lambda k, x: strided(x, k).sum()), kernel, x)
    assert gradient == forward * 2
    both = operations(jax.grad(lambda k, x: strided(x, k).sum(), (0, 1)), kernel, x)
    assert both == forward * 3


def test_operations_count_the_larger_side_of_a_condition_and_the_platforms_own_side():
    a = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def either(a):
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)

    def by_platform(a):
        return jax.lax.platform_dependent(a, cpu=lambda a: a @ a @ a, default=lambda a: a @ a)

    product = 2 * 4**3
    assert operations(either, a) == 2 * product
    assert operations(by_platform, a, platform="cpu") == 2 * product
    assert operations(by_platform, a, platform="tpu") == product


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("v5e:2x4", "v5e:2x4", 8),
        ("v5e-8", "v5e:2x4", 8),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v5p-128", "v5p:4x4x4", 64),
        ("V6E:16x16", "v6e:16x16", 256),
    ],
)
def test_topologies_by_either_name(text, name, devices):
    topology = parse_topology(text)
    assert (topology.name, topology.devices) == (name, devices)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("v5e:3x3", "v5e:2x4 (8 chips)"),
        ("v5p:5x5x5", "v5p:4x4x8 (128 chips)"),
        ("v5e-300", "v5e:16x16 (256 chips)"),
        ("v5x:2x4", "Did you mean v5"),
        ("h100:8", "v5e, v5p, v6e"),
        ("v6e", "v6e:2x2 (4 chips)"),
    ],
)
def test_an_unknown_topology_names_the_nearest(text, wanted, capsys):
    with pytest.raises(UserError) as error:
        parse_topology(text)
    assert wanted in str(error.value) and text in str(error.value)
    assert main(["plan", "--config", str(CONFIGS / "paper_ldm.py"), "--topology", text]) == 2
    assert wanted in capsys.readouterr().err


def test_an_unknown_chip_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean h200"):
        find_chip("h20")


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    config = f"{CONFIGS / 'paper_autoencoder.py'}:tiny"
    assert main(["plan", "--config", config, "--topology", "v5e:2x4"]) == 2
    assert "pip install 'libtpu==0.0.42.*'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--devices", "8", "--config.mesh.space=3"], "does not divide the 8 devices"),
        (["--devices", "8", "--config.mesh.spice=2"], "space"),
        (["--devices", "0"], "--devices 0"),
        (["--devices", "8", "--utilisation", "40"], "--utilisation 40"),
        (["--devices", "8", "--programs", "train,sample"], "has no 'sample'"),
        (["--devices", "8", "--chip", "h300"], "Known are v5e, v5p, v6e, a100, h100, h200. Did you mean h"),
        (["--devices", "12", "--chip", "h100"], "a multiple of 8"),
        (["--devices", "7", "--chip", "v5e"], "there is no such slice of v5e"),
        (["--topology", "v5e:2x4", "--chip", "h200"], "--chip goes with --devices"),
        ([], "Name what to plan for"),
        (["--devices", "8", "--largest-batch"], "--largest-batch wants to know the memory"),
        (["--ladder"], "--ladder is of the paper's configs"),
    ],
)
def test_what_cannot_be_planned_is_a_mistake_of_the_user(arguments, wanted, capsys):
    assert main(["plan", "--config", f"{CONFIGS / 'paper_autoencoder.py'}:tiny", *arguments]) == 2
    assert wanted in capsys.readouterr().err


def test_flags_of_no_config_are_refused_by_other_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", "a", "b", "c", "--config.seed=1"])
    assert exit_.value.code == 2 and "unrecognized arguments: --config.seed=1" in capsys.readouterr().err


def test_what_the_compiler_says_of_a_program_that_does_not_fit():
    sizes = too_large("the total memory required for HLO temporaries (64.00G) exceeds available HBM (15.75G).", 2**30)
    assert sizes == {"memory": {"total": 65 * 2**30}, "limit": 15.75 * 2**30}
    sizes = too_large("memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 2**30)
    assert sizes == {"memory": {"total": 20.5 * 2**30}, "limit": 15.75 * 2**30}
    assert too_large("something else", 1.0) == {"memory": None, "limit": None}


def test_time_and_fit_follow_from_the_chip():
    chip = CHIPS["v5e"]
    result = {
        "fits": None,
        "memory": {"total": 15 * 2**30},
        "operations": chip.peak,
        "arithmetic": 2.0,
        "devices": 2,
        "dtype": "bfloat16",
        "bytes": chip.memory_bandwidth,
        "loops": False,
        "collectives": [{"sent": chip.link_bandwidth / 2}],
    }
    verdict = add_verdict(result, chip, 0.5)
    assert verdict["fits"] is True
    assert verdict["times"] == {"arithmetic": 2.0, "memory": 1.0, "collectives": 0.5}
    assert verdict["step_seconds"] == 2.5
    assert verdict["bounds"] == {"arithmetic": 1.0, "memory": 1.0} and verdict["bound_seconds"] == 1.0
    assert add_verdict({**result, "memory": {"total": 16 * 2**30}}, chip, 0.5)["fits"] is False


def test_the_compilers_roofline_is_a_bound_where_it_is_possible():
    chip = CHIPS["v5e"]
    result = {
        "fits": None,
        "memory": {"total": 2**30},
        "operations": chip.peak,
        "arithmetic": chip.peak,
        "devices": 1,
        "dtype": "bfloat16",
        "bytes": chip.memory_bandwidth / 2,
        "loops": False,
        "collectives": [],
        "roofline_seconds": 1.25,
        "product_cycles": 2 * chip.clock,
        "other_bytes": 0.9 * chip.memory_bandwidth,
    }
    assert add_verdict(result, chip, 1.0)["bound_seconds"] == 1.25
    # Less than the arithmetic allows (a call that the compiler cannot see into), and a loop that it counts once.
    assert add_verdict({**result, "roofline_seconds": -0.98}, chip, 1.0)["bound_seconds"] == 1.0
    assert "roofline" not in add_verdict({**result, "loops": True}, chip, 1.0)["bounds"]
    assert "hybrid_seconds" not in add_verdict(result, chip, 1.0)
    assert add_verdict({**result, "full": True}, chip, 1.0)["hybrid_seconds"] == pytest.approx(3.0)


def test_what_is_tried_divides_the_devices_and_the_volume():
    config = autoencoder_config()
    found = list(candidates(config, 8, (20, 28)))
    assert found[:2] == [{"model.remat": (0,)}, {"model.remat": True}]
    splits = [(changes["mesh.space"], changes["mesh.space_y"]) for changes in found[2:]]
    assert splits == [(2, 1), (4, 1), (4, 2)]


class _Compiler:
    """Stands in for the compiling process: 4 GiB, 6 GiB a volume on a device, 4 or 3 with rematerialisation."""

    devices, kind = 8, "made up"

    def __init__(self, config, target):
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, program, batch=None, changes=None, full=False, devices=None):
        changes = changes or {}
        split = changes.get("mesh.space", 1) * changes.get("mesh.space_y", 1)
        parts = 8 // split
        kept = {None: 1, (0,): 2 / 3, True: 1 / 2}[changes.get("model.remat")]
        volume = 6 * 2**30 * kept / split
        return {
            "program": program,
            "batch": batch,
            "shards": parts,
            "devices": 8,
            "mesh": {"data": parts, "fsdp": 1, "space": split, "space_y": 1},
            "accumulation_steps": 1,
            "remat": False,
            "dtype": "bfloat16",
            "rules": "replicate",
            "state_bytes": 2**30,
            "arithmetic": 1e12,
            "fits": None,
            "seconds": 1.0,
            "memory": {"total": 4 * 2**30 + volume * batch / parts},
            "operations": 1e12,
            "bytes": 1e9,
            "loops": False,
            "collectives": [],
        }


@pytest.mark.parametrize(
    ("memory", "largest", "suggestion"),
    [
        (20, 16, None),  # 4 + 6 twice
        (9, None, ("--config.model.remat='(0,)' --config.batch_size=8", 8)),  # 4 + 4
        (7, None, ("--config.model.remat=True --config.batch_size=8", 8)),  # 4 + 3
        (6, None, ("--config.mesh.data=-1 --config.mesh.space=2 --config.mesh.space_y=1 --config.model.remat=True "
                   "--config.batch_size=4", 4)),  # 4 + 1.5
        (3, None, None),
    ],
)  # fmt: skip
def test_the_largest_batch_and_the_change_that_fits(monkeypatch, memory, largest, suggestion):
    monkeypatch.setattr("brainldm.planning.plan.Compiler", _Compiler)
    chip = dataclasses.replace(CHIPS["v5e"], memory=memory * 2**30)
    config = autoencoder_config()
    plan = make_plan(config, 8, chip, programs=("train",), utilisation=0.4)
    assert plan["programs"]["train"]["batch"] == 8 and "planned with 8" in plan["notes"][0]
    assert (plan["largest"]["batch"] if largest else plan.get("largest")) == largest
    if suggestion:
        assert plan["suggestion"]["flags"] == suggestion[0]
        assert plan["suggestion"]["largest"]["batch"] == suggestion[1]
    elif not largest:
        assert plan["suggestion"] is None and len(plan["tried"]) == 5
    text = report(plan)
    assert "fits" in text and "expected" in text


def _plan(capsys, *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sharded_autoencoder_on_virtual_devices(capsys):
    """Two parts of the batch times four of the volume: halos are exchanged, and no activation is gathered."""
    plan = _plan(
        capsys,
        *("--config", f"{CONFIGS / 'paper_autoencoder.py'}:tiny", "--devices", "8", "--no-search"),
        *("--programs", "encode", "--config.mesh.space=2", "--config.mesh.data=4", "--config.model.channels=(8,8)"),
    )
    encode = plan["programs"]["encode"]
    assert plan["devices"] == 8 and encode["mesh"] == {"data": 4, "fsdp": 1, "space": 2, "space_y": 1}
    kinds = {item["kind"]: item for item in encode["collectives"]}
    assert kinds["collective-permute"]["count"] > 0 and "all-gather" not in kinds
    assert encode["memory"]["total"] > 0
    # The compiler's count and ours agree: the network is convolutions, and little else.
    assert encode["operations"] * 8 == pytest.approx(encode["arithmetic"], rel=0.2)


def test_a_diffusion_run_on_virtual_devices(capsys, tmp_path):
    """Its latents have the shape that the autoencoder named gives; a batch that cannot be split is rounded."""
    autoencoder = load_config("paper_autoencoder:tiny", {"data.path": "x"})
    (tmp_path / "config.json").write_text(autoencoder.to_json())
    plan = _plan(
        capsys,
        *("--config", f"{CONFIGS / 'paper_ldm.py'}:tiny", f"--config.autoencoder={tmp_path}", "--devices", "2"),
        *("--config.mesh.fsdp=2", "--config.mesh.rules=fsdp", "--config.mesh.min_size=512"),
        *("--config.batch_size=3", "--config.model.num_res_blocks=1", "--config.model.channels=(16,)"),
        *("--config.model.attention_levels=(True,)", "--config.model.num_head_channels=(16,)"),
        *("--programs", "train,sample"),
        "--no-search",
    )
    step, sample = plan["programs"]["train"], plan["programs"]["sample"]
    assert step["batch"] == 4 and "batch_size 3" in plan["notes"][0]
    kinds = {item["kind"] for item in step["collectives"]}
    assert "all-gather" in kinds  # of parameters, which are cut
    # Two steps of DDIM: as much again as one forward pass each, a third of a training step.
    assert sample["batch"] == 2 and sample["loops"]
    assert sample["arithmetic"] / 2 == pytest.approx(2 / 3 * step["arithmetic"] / 4, rel=0.1)


def test_a_baseline_on_virtual_devices(capsys):
    """It makes volumes in one program of its own, and its devices split the batch and the state."""
    plan = _plan(
        capsys,
        *("--config", "lsgan:tiny", "--devices", "2", "--no-search", "--config.mesh.data=1", "--config.mesh.fsdp=2"),
        *("--config.mesh.rules=fsdp", "--config.mesh.min_size=64"),
    )
    step, generate = plan["programs"]["train"], plan["programs"]["generate"]
    assert (step["batch"], step["shards"], generate["batch"]) == (2, 2, 2)
    assert "all-gather" in {item["kind"] for item in step["collectives"]}
    assert generate["arithmetic"] < step["arithmetic"] / 3


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu")
def test_a_tpu_topology(capsys):
    plan = _plan(
        capsys,
        *("--config", f"{CONFIGS / 'paper_autoencoder.py'}:tiny", "--topology", "v5e:2x4", "--no-search"),
        *("--programs", "encode", "--config.mesh.space=2", "--config.model.channels=(8,8)"),
    )
    encode = plan["programs"]["encode"]
    assert plan["kind"] == "TPU v5 lite" and plan["devices"] == 8 and encode["fits"] is True
    kinds = {item["kind"] for item in encode["collectives"]}
    assert "collective-permute" in kinds and "all-gather" not in kinds
