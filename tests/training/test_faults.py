"""The training loop under faults: kills, full disks, signals, damage, other devices, another config, a second run."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import save_loop
from fakes import FakeStage
from PIL import Image
from save_loop import small_config, wait_for

from brainldm.parallel.mesh import make_mesh
from brainldm.parallel.sharding import abstract_like
from brainldm.runtime import checkpoint_folder
from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.lock import locked
from brainldm.training import loop
from brainldm.training.checkpoints import Checkpoints
from brainldm.training.metrics import MetricWriter, read_metrics
from brainldm.training.stage import Eval, EvalResult

train = functools.partial(loop.train, stage=FakeStage)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The work dir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(small_config(), workdir)
    return workdir


def state_in(workdir: Path):
    """The newest state and the loop's progress."""
    shapes = FakeStage(small_config(), make_mesh()).state_shapes()
    state, progress = Checkpoints(workdir).restore(abstract_like(shapes, save_loop.here()))
    return jax.device_get(state), progress


def check_same(one: Path, two: Path) -> None:
    for a, b in zip(jax.tree.leaves(state_in(one)), jax.tree.leaves(state_in(two)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()


def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(straight, tmp_path, start, random):
    workdir, kills = tmp_path / "run", 0
    for _ in range(3):
        process = start(save_loop.train_small, workdir)
        wait_for(workdir / "run.json", process)
        process.join(float(random.uniform(0, 0.5)))
        kills += process.is_alive()
        process.kill()
        process.join()
        (workdir / "run.json").unlink()
    process = start(save_loop.train_small, workdir)
    process.join(120)
    assert process.exitcode == 0 and kills
    check_same(straight, workdir)


def test_a_damaged_step_is_done_again(straight, tmp_path, capsys):
    workdir = Path(shutil.copytree(straight, tmp_path / "run"))
    file = next(path for path in (workdir / "checkpoints/40/ema").rglob("d/*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    train(small_config(), workdir)
    said = capsys.readouterr().err
    assert "checkpoints/40 is damaged" in said and f"{file.name}: changed" in said
    assert "going on from step 36" in said
    assert (workdir / "checkpoints/40.damaged").is_dir()
    check_same(straight, workdir)


def test_a_disk_that_is_full_for_a_while(straight, tmp_path, monkeypatch, capsys):
    real = checkpoint_folder.finish

    def finish(folder, step):
        if step in (8, 12, 20, 24):
            raise OSError(28, "No space left on device")
        real(folder, step)

    monkeypatch.setattr(checkpoint_folder, "finish", finish)
    train(small_config(), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 4 and said.count("Training goes on") == 4
    check_same(straight, tmp_path / "run")


@pytest.mark.parametrize("full_from, ends_at", [(8, 16), (36, 40)])  # three in a row; and the last one
def test_a_disk_that_stays_full(straight, tmp_path, monkeypatch, full_from, ends_at):
    real = checkpoint_folder.finish

    def finish(folder, step):
        if step >= full_from:
            raise OSError(28, "No space left on device")
        real(folder, step)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "finish", finish)
        message = f"Step {ends_at} could not be saved .*finished step is {full_from - 4}"
        with pytest.raises(Stopped, match=message) as end:
            train(small_config(), tmp_path / "run")
    assert end.value.exit_code == 75
    assert not list((tmp_path / "run/checkpoints").glob("*.unfinished*"))
    train(small_config(), tmp_path / "run")
    check_same(straight, tmp_path / "run")


def test_lines_wait_for_room_on_a_full_disk(start, tmp_path):
    process = start(save_loop.write_metrics_on_a_full_disk, tmp_path, 2000, log=tmp_path / "log")
    process.join(60)
    assert process.exitcode == 0
    assert read_metrics(tmp_path, "train")["step"] == list(range(1, 102))
    said = (tmp_path / "log").read_text()
    for what in ("metrics.jsonl", "TensorBoard events", "images"):
        assert said.count(f"{what} cannot be written (File too large)") == 1


def test_a_torn_last_line_is_passed_over_and_another_is_an_error(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2):
        writer.write_scalars(step, {"loss": 1.0})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "spl')
    assert read_metrics(tmp_path, "train")["step"] == [1, 2]
    path.write_text("{" + whole)
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_metrics(tmp_path, "train")


def _written(workdir, lines=6):
    writer = MetricWriter(workdir)
    for step in range(1, lines + 1):
        writer.write_scalars(step, {"loss": 1 / step, "l1": float("nan") if step == 2 else 0.25})
    writer.close()
    return (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def test_any_changed_bit_of_a_metric_is_seen_and_the_good_lines_are_kept(tmp_path, capsys):
    lines = _written(tmp_path)
    path, place = tmp_path / "metrics.jsonl", len(b"".join(lines[:2]))
    for bit in range(8 * len(lines[2])):
        content = bytearray(b"".join(lines))
        content[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match="line 3 is damaged"):
            read_metrics(tmp_path, "train")
        MetricWriter(tmp_path, resume_step=5).close()
        said = capsys.readouterr().err
        # where the end of the line is hit, the next one goes with it; where one is put into it, the rest counts as one
        kept = b"".join([*lines[:2], *lines[3:5]])
        assert path.read_bytes() in (kept, b"".join([*lines[:2], lines[4]])), bit
        assert "up to step 5" in said and "the first is line 3" in said
    assert set(read_metrics(tmp_path, "train")) == {"step", "loss", "l1"}


def test_metrics_of_earlier_versions_are_judged_by_what_they_say(tmp_path, capsys):
    rows = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3, 4, 5)]
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in rows)
    for old, new in (
        ('"step": 3', '"step": 7'),
        ('"step": 3', '"step": 0'),
        ('"split"', '"spliu"'),
        ("0.3", '"a'),
        ("{", "z"),
    ):
        lines = whole.splitlines(keepends=True)
        lines[2] = lines[2].replace(old, new)
        path.write_text("".join(lines))
        MetricWriter(tmp_path, resume_step=5).close()
        assert "1 line up to step 5" in capsys.readouterr().err
        assert read_metrics(tmp_path, "train")["step"] == [1, 2, 4, 5]
    path.write_text(whole)
    MetricWriter(tmp_path, resume_step=4).close()
    assert capsys.readouterr().err == "" and path.read_text() == "".join(whole.splitlines(keepends=True)[:4])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_command_goes_on(straight, tmp_path, number):
    def interrupt(step):
        if step == 7:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="Stopped at step 7 of 40; the state is saved") as caught:
        train(small_config(), tmp_path / "run", before_step=interrupt)
    assert caught.value.exit_code == 75 and signal.getsignal(number) == before
    train(small_config(), tmp_path / "run")
    check_same(straight, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_stops_at_once(straight, tmp_path, number):
    class Interrupted(FakeStage):
        def load(self, workdir):
            signal.raise_signal(number)

    with pytest.raises(Stopped, match="outside of the steps"):
        train(small_config(), tmp_path / "run", stage=Interrupted)
    assert not (tmp_path / "run").exists()
    train(small_config(), tmp_path / "run")
    check_same(straight, tmp_path / "run")


def test_two_runs_in_one_work_dir(straight, tmp_path):
    workdir = Path(shutil.copytree(straight, tmp_path / "run"))
    with locked(workdir), pytest.raises(UserError, match=f"another run is at work in it .process {os.getpid()}"):
        train(small_config(60), workdir)
    check_same(straight, workdir)
    train(small_config(44), workdir)
    assert state_in(workdir)[0].step == 44


def test_another_config_or_dataset_is_refused_by_the_checkpoint_itself(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight / "checkpoints", workdir / "checkpoints")
    (workdir / "brainldm.lock").touch()
    config = small_config().unlock()
    config.batch_size = 8
    with pytest.raises(UserError, match=r"checkpoints/40: this run was begun .*batch_size: 4 then, 8 now"):
        train(config.lock(), workdir)

    class OtherScans(FakeStage):
        run_info = {**FakeStage.run_info, "scans_training": 15, "scans_sha256": "4567"}

    with pytest.raises(UserError, match=r"checkpoints/40: .*other scans to train on \(16 then, 15 now\)"):
        train(small_config(), workdir, stage=OtherScans)
    train(small_config(), workdir)


def test_a_run_goes_on_with_other_devices_and_says_what_that_means(straight, tmp_path, start):
    workdir, log = tmp_path / "run", tmp_path / "log"
    train(small_config(20), workdir)
    process = start(save_loop.train_small, workdir, 4, log=log)
    process.join(120)
    said = log.read_text()
    assert process.exitcode == 0, said
    assert said.count("was written on another machine") == 1 and "not equal bit for bit" in said
    assert "devices 1 x cpu then, 4 x cpu now" in said and "mesh one device then, data=4 now" in said
    assert json.loads((workdir / "run.json").read_text())["resumed_from_step"] == 20
    for a, b in zip(jax.tree.leaves(state_in(straight)[0]), jax.tree.leaves(state_in(workdir)[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key, value", [("keep_last", 0), ("keep_every", -1)])
def test_impossible_numbers_of_checkpoints(tmp_path, key, value):
    config = small_config().unlock()
    config.checkpoints[key] = value
    with pytest.raises(UserError, match=rf"config.checkpoints.{key} is {value}"):
        train(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def config_with(steps: int = 40, **optimizer):
    config = small_config(steps).unlock()
    config.optimizer.update(optimizer)
    return config.lock()


def test_more_steps_are_refused_where_the_learning_rate_decays_by_their_number(tmp_path):
    workdir = tmp_path / "run"
    train(config_with(8, decay=True), workdir)
    for steps in (12, 4):
        with pytest.raises(UserError, match=rf"begun with config.num_steps=8, and {steps} is asked for.*=8, or give"):
            train(config_with(steps, decay=True), workdir)
    (workdir / "config.json").unlink()  # the checkpoint says so by itself
    (workdir / "latents").mkdir()
    (workdir / "latents/index.json").touch()
    with pytest.raises(UserError, match=r"checkpoints/8: this run was begun with config.num_steps=8"):
        train(config_with(12, decay=True), workdir)
    train(config_with(8, decay=True), workdir)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    train(small_config(8), tmp_path / "run")
    with pytest.raises(UserError, match="8 steps are done, and config.num_steps=4 asks for fewer. Give 8 or more"):
        train(small_config(4), tmp_path / "run")
    train(small_config(12), tmp_path / "run")
    assert state_in(tmp_path / "run")[0].step == 12


@pytest.mark.parametrize(
    "key, says", [("images_sha256", "other images under the same names"), ("conditions_sha256", "other conditions")]
)
def test_other_content_under_the_same_names_is_refused(tmp_path, key, says, capsys):
    class One(FakeStage):
        run_info = {**FakeStage.run_info, key: "one"}

    class Two(FakeStage):
        run_info = {**FakeStage.run_info, key: "two"}

    workdir = tmp_path / "run"
    train(small_config(4), workdir)  # as older versions did: without a hash
    capsys.readouterr()
    train(small_config(8), workdir, stage=One)
    assert capsys.readouterr().err.count("which noted no hash of") == 1
    train(small_config(12), workdir, stage=One)
    assert "noted no hash" not in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{workdir}: this run was begun with {says}") as caught:
        train(small_config(16), workdir, stage=Two)
    assert caught.value.exit_code == 2
    (workdir / "run.json").unlink()
    with pytest.raises(UserError, match=f"checkpoints/12: this run was begun with {says}"):
        train(small_config(16), workdir, stage=Two)


def test_a_window_of_steps_is_profiled(tmp_path):
    config = small_config(8).unlock()
    config.profile.first_step, config.profile.num_steps = 3, 2
    train(config.lock(), tmp_path / "run")
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    config = small_config(12).unlock()  # a run may go on without one
    train(config.lock(), tmp_path / "run")


def test_evals_run_at_intervals_of_their_own(tmp_path):
    class Evaluated(FakeStage):
        def load(self, workdir):
            loaded = super().load(workdir)
            image = Image.new("L", (4, 4))
            loaded.evals["often"] = Eval(2, lambda state: EvalResult({"seen": float(state.step)}))
            loaded.evals["images"] = Eval(3, lambda state: EvalResult(images={"grey": image}))
            loaded.evals["never"] = Eval(0, lambda state: pytest.fail("it is not due"))
            return loaded

    train(small_config(8), tmp_path / "run", stage=Evaluated)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "often"] == [2, 4, 6, 8]
    written = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert written == ["grey_0000003.png", "grey_0000006.png", "grey_0000008.png"]


def test_the_curves_are_drawn_with_the_images_and_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        loop, "plot_progress", lambda workdir: drawn.append(len(read_metrics(workdir, "train")["step"]))
    )

    class Evaluated(FakeStage):
        def load(self, workdir):
            loaded = super().load(workdir)
            image = Image.new("L", (4, 4))
            return dataclasses.replace(
                loaded, evals={"images": Eval(20, lambda state: EvalResult(images={"a": image}))}
            )

    train(small_config(40), tmp_path / "run", stage=Evaluated)
    assert len(drawn) == 3  # at 20, at 40, and at the end, of 8 lines in all
