"""What several training processes do when one of them is killed, stopped, told to stop, stuck or wrong."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from process_group import FAKE, ProcessGroup

from brainldm.training.metrics import read_metrics

pytestmark = pytest.mark.slow

CONFIG = """
from brainldm.training.config import diffusion_config

def get_config(arg=""):
    config = diffusion_config()
    config.data.path = "unused"
    config.batch_size = 6
    config.num_steps = 100000
    config.every.log = 5
    config.every.validate = config.every.images = 0
    config.every.checkpoint = 10
    config.heartbeat_seconds = 20.0  # which makes signs of life, and waits for them, short
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def start(config, tmp_path):
    """Start processes that train a network of one number, and wait for a step."""
    running = []

    def start(count: int, *flags: str, step: int = 25, **more) -> ProcessGroup:
        crew = ProcessGroup(config, tmp_path / "run", count, *flags, program=FAKE, **more)
        running.append(crew)
        if step:
            crew.wait_for_step(step)
        return crew

    yield start
    for crew in running:
        crew.__exit__(None, None, None)


def saved_steps(crew: ProcessGroup) -> list[int]:
    return sorted(int(path.name) for path in (crew.workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.mark.parametrize("victim", [1, 0])  # 0 runs the coordination service
def test_a_killed_process_ends_the_others(start, victim):
    crew = start(3)
    os.kill(crew.worker(victim), signal.SIGKILL)
    assert crew.wait(60) == [75, 75, 75]
    for index in range(3):
        last = crew.last_line(index)
        if index == victim:
            assert f"process {victim} of 3 ends: it was killed by signal 9 (SIGKILL)" in last
        else:
            assert re.search(rf"process {index} of 3 ends: process {victim} of 3 \(.+\) has ended: it was killed", last)
    assert saved_steps(crew)[-1] >= 10  # step 20 began with that save done


def test_a_stopped_process_is_named_by_the_others_and_does_not_outlive_them(start):
    crew = start(2, "--config.watchdog_seconds=4", "--config.every.checkpoint=0")
    victim = crew.worker(1)
    os.kill(victim, signal.SIGSTOP)
    assert crew.wait(120) == [75, 75]
    last = crew.last_line(0)
    assert "process 0 of 2 ends: no step was completed for" in last
    assert re.search(rf"No sign of life from process 1 \(.+, pid {victim}\)", last)
    stacks = (crew.workdir / "processes/stacks_0.txt").read_text()
    assert "loop.py" in stacks and "loop.py" in crew.log(0)
    assert "process 1 of 2 was killed, because it did not react" in crew.last_line(1)
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)


def test_a_silent_process_is_missed_before_jax_aborts_the_others(start):
    crew = start(3, "--config.heartbeat_seconds=4")
    victim = crew.worker(2)
    os.kill(victim, signal.SIGSTOP)
    assert crew.wait(120) == [75, 75, 75]
    assert f"pid {victim}) gave no sign of life" in crew.last_line(0)
    assert "process 2 of 3" in crew.last_line(1) and "it gave no sign of life" in crew.last_line(1)


def test_told_to_stop_one_process_stops_all_at_one_step(start):
    crew = start(3)
    crew.processes[1].send_signal(signal.SIGTERM)
    assert crew.wait(120) == [75, 75, 75]
    steps = {int(re.search(r"Stopped at step (\d+) of 100000", crew.last_line(index))[1]) for index in range(3)}
    assert len(steps) == 1
    (step,) = steps
    assert saved_steps(crew)[-1] == step
    assert read_metrics(crew.workdir, "train")["step"] == list(range(5, step + 1, 5))


@pytest.mark.parametrize(
    ("fault", "code", "message"), [("bad", 2, "sub-7: cannot be read."), ("bug", 1, "KeyError: 'a bug'")]
)
def test_a_failure_of_one_process_is_told_by_all(start, fault, code, message):
    crew = start(2, step=0, FAKE=fault)
    assert crew.wait(120) == [code, code]
    assert all(message in crew.last_line(index) for index in range(2))
    assert ("Traceback" in crew.log(1)) == (fault == "bug")


def test_a_mistake_is_found_by_all(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("somebody else's")
    crew = start(2, step=0)
    assert crew.wait(120) == [2, 2]
    assert all("already holds something else" in crew.last_line(index) for index in range(2))


def test_a_launcher_says_which_process_this_is(start):
    crew = start(2, "--config.num_steps=5", step=0, slurm=True)
    assert crew.wait(120) == [0, 0], crew.log(0)
    assert json.loads((crew.workdir / "run.json").read_text())["device"].startswith("2 x")


def test_nothing_that_says_which_process_this_is(config, tmp_path):
    with ProcessGroup(config, tmp_path / "run", 1, "--distributed", program=FAKE) as crew:
        assert crew.wait(120) == [2]
        assert "give --coordinator HOST:PORT --num-processes N --process-id I" in crew.log(0)
    assert not (tmp_path / "run").exists()
