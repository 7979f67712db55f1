"""Commands that are stopped from outside, or meet a folder in which another one is at work."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from brainldm.cli import main
from brainldm.commands import check, population
from brainldm.runtime.lock import UNFINISHED
from brainldm.runtime.signals import stop_at_once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_command_with_75_and_no_promise_to_go_on(number, monkeypatch, tmp_path, capsys):
    for command, arguments, said in (
        (population, ["population", str(tmp_path / "out")], f"does not go on from here: delete {tmp_path / 'out'}"),
        (check, ["check", str(tmp_path)], "nothing was written"),
    ):
        monkeypatch.setattr(command, "run", lambda options: os.kill(os.getpid(), number))
        assert main(arguments) == 75
        err = capsys.readouterr().err
        assert err.startswith("brainldm: stopped from outside") and said in err and "goes on from there" not in err


def test_a_signal_inside_a_finalizer_is_not_lost():
    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # Python runs the handler in here, and forgets what it raises
                os.getpid()

    waited = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        with stop_at_once():
            garbage = Finalized()
            del garbage
            waited.wait(30)


def test_a_stopped_population_leaves_no_process_and_an_unfinished_folder(tmp_path, repository):
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "brainldm", "population", str(out), "--n", "200", "--workers", "2"]
    run = subprocess.Popen(arguments, cwd=repository, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while run.poll() is None and not list(out.glob("sub-*/anat/*.nii.gz")):
        threading.Event().wait(0.2)
    second = subprocess.run(arguments, cwd=repository, capture_output=True, text=True, check=False)
    run.send_signal(signal.SIGTERM)
    said = run.communicate()[1]  # ends when the workers have closed their end as well
    assert second.returncode == 2 and f"process {run.pid} on" in second.stderr
    assert run.returncode == 75 and "Traceback" not in said, said
    assert (out / UNFINISHED).exists() and not (out / "participants.tsv").exists()
    deadline = time.monotonic() + 60
    while _alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(run.pid)


def _alive(group: int) -> bool:
    """Whether a process of the group runs (not one that is dead and not yet waited for)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False


@pytest.mark.parametrize("seed", ["-1", "100000000000000000000", "1.5", "x"])
def test_a_seed_that_numpy_does_not_take_is_refused(seed, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["population", str(tmp_path / "out"), "--n", "1", "--seed", seed])
    assert ended.value.code == 2 and "from 0 to 2**63 - 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_commands_that_fill_one_folder_refuse_a_second_run(demo_run, tmp_path, capsys):
    import brainldm.runtime.lock as lock

    model = shutil.copytree(demo_run / "model", tmp_path / "model")
    out = tmp_path / "out"
    commands = [
        ["demo", str(out), "--tiny"],
        ["population", str(out), "--n", "1", "--workers", "1"],
        ["export", str(demo_run / "autoencoder"), str(demo_run / "diffusion"), str(out)],
        ["evaluate", str(demo_run / "synthetic"), str(demo_run / "held_out"), str(out)],
        ["convert", str(model), str(out)],
    ]
    with lock.new_folder(out):
        for arguments in commands:
            assert main(arguments) == 2, arguments
            assert f"another run is at work in it (process {os.getpid()}" in capsys.readouterr().err
