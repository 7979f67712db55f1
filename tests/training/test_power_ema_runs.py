"""Power-function averages in the training step, and their snapshots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.models.build import build
from brainldm.parallel.sharding import Sharding
from brainldm.training import diffusion
from brainldm.training.flags import load_config
from brainldm.training.stage import mesh_of
from brainldm.training.stage_diffusion import DiffusionStage
from brainldm.training.state import AveragedDiffusionState, power_update
from brainldm.weights.power_ema import LENGTHS, exponent, snapshot_steps

TINY = {
    "data.path": "people",
    "model.channels": (4,),
    "model.attention_levels": (False,),
    "model.num_head_channels": (4,),
    "model.norm_num_groups": 2,
    "model.adaptive_norm": False,
    "optimizer.power_ema": True,
    "optimizer.muon_learning_rate": 0.0,
    "optimizer.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def config():
    return load_config("demo_ldm:tiny", TINY)


def test_the_update_is_the_papers_also_after_a_million_steps():
    for name, length in LENGTHS.items():
        averages, params = {name: jnp.float32(0.0)}, jnp.float32(1.0)
        for step in (1, 2, 17, 1_000_000):
            found = float(power_update(averages, params, jnp.int32(step))[name])
            exact = 1 - (1 - np.float64(1) / step) ** (exponent(length) + 1)
            assert found == pytest.approx(exact, rel=1e-5), (name, step)


def test_of_parameters_that_grow_evenly_the_average_is_known():
    averages = {name: jnp.float32(99.0) for name in LENGTHS}

    def step(averages, t):
        return power_update(averages, t.astype(jnp.float32), t), None

    found, _ = jax.lax.scan(step, averages, jnp.arange(1, 2001))
    for name, length in LENGTHS.items():
        gamma = exponent(length)
        # the mean of tau under its weights, (gamma + 1) / (gamma + 2) t, but for the width of a step
        assert float(found[name]) == pytest.approx(2000 * (gamma + 1) / (gamma + 2), abs=1.0)


def test_a_step_keeps_both_averages_and_a_snapshot_writes_them(config, tmp_path):
    unet = build("unet", diffusion.unet_arguments(config, 2, 4), num_devices=1)
    init, step, _ = diffusion.build(config, unet, Sharding(config.mesh))
    batch = {"latent": jnp.ones((2, 2, 2, 2, 2)), "condition": jnp.full((2, 4), 0.5)}
    state = jax.jit(lambda: init(jax.random.key(0), batch, 1.0))()
    assert isinstance(state, AveragedDiffusionState) and set(state.averages) == set(LENGTHS)
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    state, _ = step(state, batch, None)
    first = state.params
    for average in state.averages.values():  # of what was before nothing is left
        jax.tree.map(lambda a, p: np.testing.assert_allclose(a, p, atol=1e-7), average, first)
    state, _ = step(state, batch, None)
    rest = 0.5 ** (exponent(LENGTHS["long"]) + 1)
    expected = jax.tree.map(lambda a, p: rest * a + (1 - rest) * p, first, state.params)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-7), state.averages["long"], expected)
    DiffusionStage(config, mesh_of(config)).snapshot(tmp_path / "averages", state)
    assert snapshot_steps(tmp_path / "averages", 2) == [2]


def test_a_full_disk_is_said_and_stops_nothing(config, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brainldm.training.stage_diffusion.write_snapshot", full)
    state = AveragedDiffusionState(jnp.int32(3), {}, {}, (), jnp.float32(1), {"short": {}, "long": {}})
    DiffusionStage(config, mesh_of(config)).snapshot(tmp_path, state)
    assert "no snapshot of the averages at step 3 (No space left" in capsys.readouterr().err


def test_without_it_the_state_is_as_it_was(config):
    plain = config.copy_and_resolve_references().unlock()
    plain.optimizer.power_ema = False
    shapes = [diffusion.state_shapes(one, (4, 4, 4, 2)) for one in (config, plain)]
    assert not hasattr(shapes[1], "averages")
    sizes = [len(jax.tree.leaves(one)) for one in shapes]
    assert sizes[0] - sizes[1] == 2 * len(jax.tree.leaves(shapes[1].params))
