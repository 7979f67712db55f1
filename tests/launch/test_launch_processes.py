"""The scripts that keep a program running: exit codes, signals, repetition."""

import os
import re
import signal
import time

import pytest

QUICK = {"AGAIN_PAUSE": "0"}
TRAIN = ("--config", "c.py", "--workdir", "my run")


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("plan", "ends_with", "turns"),
    [("0", 0, 1), ("1", 1, 1), ("2", 2, 1), ("75 0", 0, 2), ("75 75 2", 2, 3), ("134", 134, 1)],
)
def test_again_runs_the_same_command_after_75_only(place, plan, ends_with, turns):
    done = place.run("again.sh", "launch/run.sh", "train", *TRAIN, PLAN=plan, **QUICK)
    assert done.returncode == ends_with
    assert [call["words"] for call in place.calls()] == [["train", *TRAIN]] * turns


def test_again_gives_up_after_its_limit(place):
    done = place.run("again.sh", "launch/run.sh", "train", PLAN="75", AGAIN_LIMIT="2", **QUICK)
    assert done.returncode == 75 and len(place.calls()) == 3 and "enough" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_again_reaches_the_program_once_and_ends_the_repetition(place, sent):
    process = place.start("again.sh", "launch/run.sh", "train", PLAN="wait", **QUICK)
    wait_for(lambda: len(place.calls()) == 1)
    time.sleep(1.5)  # until both programs heed signals, also on a busy machine
    process.send_signal(sent)
    process.send_signal(sent)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75
    assert "program saw TERM\n" in output and len(place.calls()) == 1


def test_background_starts_one_run_at_a_time_and_stops_it_after_it_saved(place):
    words = ("start", "launch/run.sh", "train", *TRAIN)
    assert place.run("background.sh", "logs").returncode == 1
    assert place.run("background.sh", "stop").returncode == 0  # nothing to stop
    assert place.run("background.sh", *words, PLAN="wait").returncode == 0
    wait_for(lambda: len(place.calls()) == 1)
    second = place.run("background.sh", *words)
    assert second.returncode == 1 and "already running" in second.stderr
    stopped = place.run("background.sh", "stop")
    assert stopped.returncode == 0, stopped.stderr
    log = place.run("background.sh", "logs").stdout
    assert "program saw TERM" in log and "'my run'" in log
    assert [call["words"] for call in place.calls()] == [["train", *TRAIN]]
    # Stopped: another one may start.
    assert place.run("background.sh", *words, PLAN="75 0", **QUICK).returncode == 0
    assert place.run("background.sh", "logs").returncode == 0
    wait_for(lambda: len(place.calls()) == 2)


def test_a_process_id_from_before_a_restart_is_not_taken_for_the_run(place):
    folder = place.folder / "background"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "pid").write_text(str(os.getpid()))
    done = place.run("background.sh", "stop", BRAINLDM_BACKGROUND=str(folder))
    assert done.returncode == 0 and "nothing is running" in done.stderr


def test_processes_differ_in_their_number_only(place):
    done = place.run("processes.sh", "3", *TRAIN)
    assert done.returncode == 0, done.stderr
    calls = sorted((call["words"] for call in place.calls()), key=lambda words: words[-1])
    (address,) = {words[-5] for words in calls}
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    for i, words in enumerate(calls):
        rest = ["--distributed", "--coordinator", address, "--num-processes", "3", "--process-id", str(i)]
        assert words == ["train", *TRAIN, *rest]
        assert f"[{i}] program started {i}\n" in done.stdout


def test_processes_on_gpus_see_one_each_of_those_that_are_visible(place):
    assert place.run("processes.sh", "2", *TRAIN, BRAINLDM_PLATFORM="gpu", CUDA_VISIBLE_DEVICES="4,6").returncode == 0
    assert {call["words"][-1]: call["CUDA_VISIBLE_DEVICES"] for call in place.calls()} == {"0": "4", "1": "6"}
    done = place.run("processes.sh", "3", *TRAIN, BRAINLDM_PLATFORM="gpu", CUDA_VISIBLE_DEVICES="4,6")
    assert done.returncode == 2 and "2 visible GPUs" in done.stderr


@pytest.mark.parametrize(
    ("plan", "ends_with"),
    [("75|75", 75), ("0|75", 75), ("75|0", 75), ("1|wait", 1), ("wait|2", 2), ("wait|134", 134)],
)
def test_processes_end_with_the_code_of_the_first_that_failed(place, plan, ends_with):
    done = place.run("processes.sh", "2", *TRAIN, PLAN=plan)
    assert done.returncode == ends_with, done.stdout
    # One that waits says at the end of its wait what it saw, and nothing where the signal came before its first line.
    assert not re.search(r"program saw *$", done.stdout, re.MULTILINE)


def test_a_signal_to_processes_reaches_each_once(place):
    process = place.start("processes.sh", "2", *TRAIN, PLAN="wait")
    wait_for(lambda: len(place.calls()) == 2)
    time.sleep(0.3)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75
    assert output.count("program saw TERM\n") == 2
