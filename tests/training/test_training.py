"""Both stages: the loss falls, a continued run equals an undisturbed one, bad numbers stop a run."""

import json
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import FakeStage

from brainldm.datasets.bids import image_path
from brainldm.runtime.errors import Stopped, UserError
from brainldm.training import autoencoder, loop, restore
from brainldm.training.flags import load_config
from brainldm.training.metrics import MetricWriter, read_metrics
from brainldm.training.optimizer import make_optimizer
from brainldm.training.state import accumulate, ema_update
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume

STAGES = ("autoencoder", "diffusion")


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_goes_down(demo_run, stage):
    train = read_metrics(demo_run / stage, "train")["loss"]
    validation = read_metrics(demo_run / stage, "validation")["loss"]
    assert train[-1] < {"autoencoder": 0.8, "diffusion": 0.95}[stage] * train[0]
    assert validation == sorted(validation, reverse=True)
    if stage == "diffusion":  # unweighted squared error of a velocity: 1 for a network that predicts nothing
        assert validation[-1] < 0.9


@pytest.mark.parametrize("stage", STAGES)
def test_the_learning_rate_and_the_size_of_updates_are_logged(demo_run, stage):
    columns = read_metrics(demo_run / stage, "train")
    config = restore.read_config(demo_run / stage)
    rates, norms = columns["learning_rate"], columns["update_norm"]
    assert 0 < max(rates) <= config.optimizer.learning_rate * (1 + 1e-6) and rates[-1] < rates[0]
    assert all(0 < norm < 10 for norm in norms)
    assert set(columns) >= {"loss", "gradient_norm"}


def test_reconstructions_are_better_than_the_mean_brain(demo_run):
    # A flat guess at the mean intensity of these volumes has an L1 error above 0.2.
    assert read_metrics(demo_run / "autoencoder", "validation")["l1"][-1] < 0.15


@pytest.mark.parametrize("stage", STAGES)
def test_a_continued_run_equals_an_undisturbed_one(demo_run, tmp_path, stage):
    workdir = shutil.copytree(demo_run / stage, tmp_path / stage)
    last, before = {"autoencoder": (24, 12), "diffusion": (72, 48)}[stage]
    shutil.rmtree(workdir / f"checkpoints/{last}")
    config = restore.read_config(workdir).unlock()
    if stage == "diffusion":  # which has its latents and needs no volumes any more
        bare = shutil.ignore_patterns("*.nii*")
        config.data.path = str(shutil.copytree(demo_run / "population", tmp_path / "bare", ignore=bare))
    loop.train(config.lock(), workdir)
    assert json.loads((workdir / "run.json").read_text())["resumed_from_step"] == before
    straight, continued = (restore.restore_state(config, folder) for folder in (demo_run / stage, workdir))
    assert jax.tree.structure(straight) == jax.tree.structure(continued)
    for one, two in zip(jax.tree.leaves(straight), jax.tree.leaves(continued), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    assert (workdir / "metrics.jsonl").read_bytes() == (demo_run / stage / "metrics.jsonl").read_bytes()


def test_a_changed_config_does_not_continue_a_run(demo_run):
    config = restore.read_config(demo_run / "autoencoder").unlock()
    config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.004 then, 0.5 now"):
        loop.train(config.lock(), demo_run / "autoencoder")


def test_the_latent_scale_is_computed_and_kept(demo_run):
    config = restore.read_config(demo_run / "diffusion")
    run_info = json.loads((demo_run / "diffusion/run.json").read_text())
    state = restore.restore_state(config, demo_run / "diffusion")
    assert float(state.latent_scale) == pytest.approx(run_info["latent_scale"], rel=1e-6)
    model = json.loads((demo_run / "model/model.json").read_text())
    assert model["latent_scale"] == pytest.approx(run_info["latent_scale"], rel=1e-6)
    assert not any(
        np.array_equal(a, p)
        for a, p in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True)
        if a.size > 100
    )


@pytest.fixture
def fake_run(demo_run, tmp_path):
    """loop.train with a stage that reports given losses: (run(losses, before_step), workdir)."""
    config = restore.read_config(demo_run / "autoencoder").unlock()
    config.num_steps, config.optimizer.decay = 10, False
    config.every.log = config.every.validate = config.every.checkpoint = 2

    def run(losses, before_step=lambda step: None):
        class Reporting(FakeStage):
            pass

        Reporting.losses = losses
        loop.train(config.lock(), tmp_path / "run", Reporting, before_step)

    return run, tmp_path / "run"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_before_saving(fake_run, bad):
    run, workdir = fake_run
    losses = np.ones(10)
    losses[5] = bad  # step 6, which would be saved
    with pytest.raises(FloatingPointError, match=r"step 6 is not finite.*sub-[0-9]+"):
        run(losses)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    assert max(json.loads(x)["step"] for x in (workdir / "metrics.jsonl").read_text().splitlines()) == 4
    run(np.ones(10))  # and goes on from there
    assert "10" in {p.name for p in (workdir / "checkpoints").iterdir()}


@pytest.mark.parametrize("moment", [1, 5])  # before the first validation, and after some
def test_sigterm_saves_and_the_same_command_goes_on(fake_run, moment):
    run, workdir = fake_run

    def interrupt(step):
        if step == moment:
            signal.raise_signal(signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Stopped, match=f"Stopped at step {moment} of 10") as caught:
        run(np.ones(10), interrupt)
    assert caught.value.exit_code == 75
    assert (workdir / f"checkpoints/{moment}").is_dir()
    run(np.ones(10))
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["split"] == "train"] == [2, 4, 6, 8, 10]


def test_metrics_of_later_steps_are_dropped_on_resume(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": 1 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "tr')  # cut off by a kill
    writer = MetricWriter(tmp_path, resume_step=2)
    writer.write_scalars(3, {"loss": 9.0})
    writer.close()
    assert read_metrics(tmp_path, "train") == {"step": [1, 2, 3], "loss": [1.0, 0.5, 9.0]}


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    w = jnp.arange(3.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)

    def compute(part, key):
        return jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(part @ w) ** 2))(w)

    key = jax.random.key(0)
    whole, parts = accumulate(compute, x, key, 1), accumulate(compute, x, key, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, parts)


def test_learning_rate_warms_up_and_decays():
    def rates(**options):
        tx = make_optimizer(1.0, num_steps=20, **options)
        state, sizes = tx.init({"w": jnp.ones(1)}), []
        for _ in range(20):
            updates, state = tx.update({"w": jnp.ones(1)}, state, {"w": jnp.ones(1)})
            sizes.append(-float(updates["w"][0]))
        return sizes

    warm = rates(warmup_steps=4)
    np.testing.assert_allclose(warm[:5], [0, 0.25, 0.5, 0.75, 1.0], atol=1e-5)
    np.testing.assert_allclose(warm[5:], 1, atol=1e-4)
    np.testing.assert_allclose(rates(), 1, atol=1e-4)
    decayed = rates(decay=True, warmup_steps=4)
    assert decayed[-1] < 0.03 and all(a >= b for a, b in zip(decayed[4:], decayed[5:], strict=False))


def test_gradients_are_clipped_and_weights_decay():
    tx = make_optimizer(0.1, num_steps=10, gradient_clip=1.0)
    plain = make_optimizer(0.1, num_steps=10)
    small, large = {"w": jnp.full(4, 1e-3)}, {"w": jnp.full(4, 1e3)}
    clipped = optax.tree.norm(tx.update(large, tx.init(small), small)[1][1][0].mu)
    assert float(clipped) == pytest.approx(0.1, rel=1e-4)  # (1 - b1) times a gradient of norm 1
    free = optax.tree.norm(plain.update(large, plain.init(small), small)[1][0].mu)
    assert float(free) == pytest.approx(200, rel=1e-4)
    decaying = make_optimizer(0.1, num_steps=10, weight_decay=0.5)
    zero = {"w": jnp.zeros(4)}
    updates, _ = decaying.update(zero, decaying.init(large), large)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * 1e3, rtol=1e-5)


def test_the_moving_average_forgets_its_start_and_then_moves_slowly():
    ema, params = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    assert float(ema_update(ema, params, jnp.int32(0), 0.999)["w"][0]) == pytest.approx(0.9)
    assert float(ema_update(ema, params, jnp.int32(10**6), 0.999)["w"][0]) == pytest.approx(0.001, rel=1e-3)
    assert float(ema_update(ema, params, jnp.int32(5), 0.0)["w"][0]) == 1.0


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_unreadable_volumes_stop_a_run_with_their_name(demo_run, tmp_path, cache_gib):
    data = shutil.copytree(demo_run / "population", tmp_path / "data")
    bad = next((data / "sub-0002/anat").glob("*_T1w.nii.gz"))
    write_volume(bad, np.random.rand(40, 56, 38), training_grid(4).affine)
    assert bad.parent == image_path(data, "sub-0002").parent
    config = restore.read_config(demo_run / "autoencoder").unlock()
    config.data.path, config.data.cache_gib = str(data), cache_gib
    with pytest.raises(UserError, match=f"{bad.name}.*40x56x38"):
        loop.train(config.lock(), tmp_path / "run")


def test_a_discriminator_that_no_step_trains_is_not_part_of_the_program():
    def passed_on(**loss):
        changes = {f"loss.{name}": value for name, value in loss.items()} | {"model.channels": (4,)}
        config = load_config("demo_autoencoder:tiny", {"data.path": "x", **changes})
        _, train_step, _ = autoencoder.build(config, None)
        state = autoencoder.state_shapes(config)
        image = jax.ShapeDtypeStruct((2, 40, 56, 40, 1), jnp.float32)
        program, shapes = jax.make_jaxpr(train_step, return_shape=True)(state, {"image": image}, None)
        places = jax.tree.unflatten(jax.tree.structure(shapes), program.jaxpr.outvars)[0].discriminator
        return {place in program.jaxpr.invars for place in jax.tree.leaves(places)}

    assert passed_on(adversarial_start=24) == {True}
    assert passed_on(adversarial_weight=0.0, perceptual="none") == {True}
    assert passed_on(adversarial_weight=0.0) == {False}  # its features are still matched
    assert passed_on(adversarial_start=23) == {False}
