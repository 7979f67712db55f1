"""Checkpoints under kill -9, damage of every kind, a full disk, and on other devices."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import save_loop
from save_loop import wait_for

from brainldm.parallel.sharding import abstract_like
from brainldm.runtime import checkpoint_folder
from brainldm.runtime.errors import BrainldmError, Stopped, UserError
from brainldm.runtime.lock import locked
from brainldm.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """A work dir with the steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        save_loop.save(checkpoints, step)
    checkpoints.finish()
    checkpoints.close()
    return workdir


def names(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_kill_9_while_saving_ten_times(start, tmp_path, random):
    size, reached = 500_000, [0]
    for _ in range(10):
        process = start(save_loop.save_for_ever, tmp_path, size)
        end = time.monotonic() + 180
        while max(checkpoint_folder.finished_steps(tmp_path / "checkpoints"), default=0) <= reached[-1]:
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.005)
        time.sleep(float(random.uniform(0, 0.3)))  # the next saves follow one after the other
        process.kill()
        process.join()
        reached.append(save_loop.restored(tmp_path, size)[0])
    assert reached == sorted(reached) and reached[-1] >= 10
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.begin()[0] == reached[-1]
    # The best is the first of the losses 1, 2, 3, ...: it stays through all the kills.
    assert names(tmp_path) == sorted(map(str, {1, reached[-1] - 1, reached[-1]}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_of_a_step_is_found(two_steps, tmp_path, damage):
    folder = shutil.copytree(two_steps / "checkpoints", tmp_path / "checkpoints")
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    parts = {path.relative_to(folder / "2").parts[0] for path in files}
    assert parts == {
        "SHA256SUMS",
        "_CHECKPOINT_METADATA",
        "about",
        "commit_success.txt",
        "ema",
        "progress",
        "state",
    }
    for file in files:
        content = file.read_bytes()
        DAMAGES[damage](file)
        found = checkpoint_folder.find_damage(folder, 2)
        name = file.relative_to(folder / "2").as_posix()
        assert found is not None and (file.name == checkpoint_folder.SUMS or found.startswith(f"{name}: "))
        file.write_bytes(content)
        assert checkpoint_folder.find_damage(folder, 2) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_not_used_and_saved_again(two_steps, tmp_path, capsys, random, damage):
    workdir = Path(shutil.copytree(two_steps, tmp_path / "run"))
    file = random.choice(sorted(path for path in (workdir / "checkpoints/2").rglob("*") if path.is_file()))
    DAMAGES[damage](file)
    capsys.readouterr()
    assert save_loop.restored(workdir)[0] == 1  # reading, which leaves all as it is
    assert names(workdir) == ["1", "2"]
    said = capsys.readouterr().err
    assert "checkpoints/2 is damaged" in said and "falling back to step 1" in said
    checkpoints = Checkpoints(workdir)
    assert checkpoints.begin()[0] == 1
    save_loop.save(checkpoints, 2)
    checkpoints.finish()
    assert names(workdir) == ["1", "2", "2.damaged"]
    assert save_loop.restored(workdir)[0] == 2


def test_an_added_file_is_damage(two_steps, tmp_path):
    """Orbax takes folders of a step for items; and a line lost from SHA256SUMS looks the same."""
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    (workdir / "checkpoints/2/state/more").write_text("x")
    assert checkpoint_folder.find_damage(workdir / "checkpoints", 2) == "state/more: not in SHA256SUMS"


def test_no_whole_step_is_an_error_that_names_all(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    flip(workdir / "checkpoints/1/progress/metadata")
    (workdir / "checkpoints/2/SHA256SUMS").unlink()
    for use in (Checkpoints(workdir).begin, lambda: save_loop.restored(workdir)):
        with pytest.raises(
            BrainldmError, match=r"2 \(SHA256SUMS: missing\); 1 \(progress/metadata: changed\)"
        ) as caught:
            use()
        assert caught.value.exit_code == 1
    assert names(workdir) == ["1", "2"]  # nothing is thrown away
    with pytest.raises(BrainldmError, match=r"checkpoints/1 is damaged"):
        Checkpoints(workdir).restore(abstract_like(save_loop.state_of(0), save_loop.here()), 1)


def test_what_a_kill_leaves_is_no_step_and_goes(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.unfinished")  # committed by Orbax, not hashed yet
    (folder / "4.unfinished.orbax-checkpoint-tmp").mkdir()
    assert save_loop.restored(workdir)[0] == 2
    assert Checkpoints(workdir).begin()[0] == 2
    assert names(workdir) == ["1", "2"]
    only = tmp_path / "first"
    shutil.copytree(two_steps / "checkpoints/1", only / "checkpoints/1.unfinished")
    assert Checkpoints(only).begin() == (None, {}) and names(only) == []
    with pytest.raises(UserError, match="no checkpoint in it"):
        save_loop.restored(only)


def test_the_sums_can_be_checked_without_us(two_steps):
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=two_steps / "checkpoints/2",
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0 and checked.stdout.count(": OK") > 10


def test_which_steps_stay(tmp_path):
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: None, 50: 2.5, 60: float("nan")}
    assert checkpoint_folder.superfluous(losses, keep_last=2, keep_every=0) == [10, 30, 40]
    assert checkpoint_folder.superfluous(losses, keep_last=1, keep_every=30) == [10, 40, 50]
    assert checkpoint_folder.superfluous({1: None, 2: None, 3: None}, keep_last=1, keep_every=0) == [1, 2]
    for start in (1, 5):  # the best and the third ones also survive a new start
        checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=3)
        checkpoints.begin()
        for step in range(start, start + 4):
            checkpoints.save(step, save_loop.state_of(step), {"validation_loss": abs(step - 2.2)})
        checkpoints.finish()
    assert names(tmp_path) == ["2", "3", "6", "8"]


def test_what_the_loop_adds_after_a_save_is_not_in_it(tmp_path):
    progress = {"sums": {"loss": 1.0}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, save_loop.state_of(1), progress)
    progress["sums"]["loss"] += 1
    checkpoints.finish()
    assert checkpoints.restore(abstract_like(save_loop.state_of(0), save_loop.here()))[1] == {"sums": {"loss": 1.0}}


def test_a_full_disk_is_a_warning_and_in_the_end_an_end(start, tmp_path):
    process = start(save_loop.save_on_a_full_disk, tmp_path, 200_000, 500_000, log=tmp_path / "log")
    process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 75, said
    assert said.count("Warning: Step") == 4 and "Step 2 could not be saved" in said
    assert "The newest finished step is 1." in said and "Training goes on" in said
    message = (tmp_path / "message").read_text()
    assert "Step 7 could not be saved" in message and "The newest finished step is 4." in message
    assert names(tmp_path) == ["1", "4"]
    assert save_loop.restored(tmp_path, 500_000)[0] == 4


def test_a_state_goes_to_other_devices(start, tmp_path):
    process = start(save_loop.save_on_four_devices, tmp_path)
    process.join(120)
    assert process.exitcode == 0


def test_other_shapes_are_refused_with_the_differences(two_steps):
    state = save_loop.state_of(0)
    state.params["conv"]["kernel"] = state.params["conv"]["kernel"][:7]
    state.params["extra"] = state.params["conv"].pop("bias")
    with pytest.raises(UserError) as caught:
        Checkpoints(two_steps).restore(abstract_like(state, save_loop.here()))
    message = str(caught.value)
    assert "params/conv/kernel is float32 1000 in it, float32 7 here" in message
    assert "params/conv/bias is float32 3 in it, not there here" in message
    assert "params/extra is not there in it, float32 3 here" in message
    assert "ema" not in message


def test_lines_and_pictures_that_are_not_on_disk_are_a_failed_save(tmp_path):
    def ready():
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, save_loop.state_of(1), {}, ready=ready)
    with pytest.raises(Stopped, match=r"Step 1 could not be saved \(.*No space left.*No step is finished yet"):
        checkpoints.finish()
    assert names(tmp_path) == []


def test_a_second_run_in_a_folder_is_refused(start, tmp_path):
    folder = tmp_path / "run"
    process = start(save_loop.hold_lock, folder)
    wait_for(folder / "ready", process)
    with pytest.raises(UserError, match=rf"another run is at work in it \(process {process.pid} on "), locked(folder):
        pass
    process.kill()
    process.join()
    with locked(folder):  # the file is still there, and locks nothing
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), locked(folder):
            pass
    assert (folder / "ready").exists()
    with locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()  # nothing came of it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_wish_to_stop_ends_at_once_and_finished_steps_stay(start, tmp_path, number):
    process = start(save_loop.save_for_ever, tmp_path, 500_000)
    wait_for(tmp_path / "checkpoints/1", process)
    os.kill(process.pid, signal.SIGUSR1)  # a scheduler's warning is not the first of two
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # the same wish, sent to the group and passed on
    time.sleep(0.7)
    assert process.is_alive()
    os.kill(process.pid, number)
    process.join(10)
    assert process.exitcode == 75
    assert save_loop.restored(tmp_path, 500_000)[0] >= 1


def test_a_second_wish_ends_a_computation_that_python_cannot_interrupt(start, tmp_path):
    process = start(save_loop.wait_in_one_call, tmp_path)
    wait_for(tmp_path / "ready", process)
    os.kill(process.pid, signal.SIGTERM)
    wait_for(tmp_path / "requested", process)
    time.sleep(1.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 75


def test_the_progress_of_a_step_can_be_read_by_a_person(two_steps):
    content = json.loads((two_steps / "checkpoints/2/about/metadata").read_text())
    assert content["shapes"]["ema/conv/kernel"] == "float32 1000"
