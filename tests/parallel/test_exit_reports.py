"""Exit reports, barriers, the watchdog and the supervisor, with small processes that do not train."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from brainldm.parallel.distributed import meet
from brainldm.parallel.launch import Launch, launch_of
from brainldm.runtime.errors import UserError
from brainldm.runtime.heartbeats import BEAT_SECONDS, FINISHED, HeartbeatFolder, HeartbeatMonitor

pytestmark = pytest.mark.slow

HEADER = """
import os, signal, sys, time
from brainldm.runtime.heartbeats import HeartbeatFolder
from brainldm.runtime.supervisor import supervise, supervised, tell_supervisor
from brainldm.runtime.watchdog import Watchdog
"""


@pytest.fixture
def python(repository):
    """Start Python with a program; `ended(process)` gives exit code, standard error and its last line."""
    started = []

    def start(program: str, *arguments) -> subprocess.Popen:
        program = HEADER + textwrap.dedent(program)
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=repository,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen, seconds: float = 30) -> tuple[int, str, str]:
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors, errors.strip().splitlines()[-1]


# Words


def test_a_launch_is_what_flags_or_the_environment_say():
    environment = {"JAX_COORDINATOR_ADDRESS": "n1:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
    assert launch_of(None, None, None, environment) == Launch("n1:1", 4, 0)
    assert launch_of("n0:7", 4, 3, environment) == Launch("n0:7", 4, 3)
    assert launch_of(None, None, None, {}) == Launch()
    # Launchers give the address that way and the rest by what JAX finds.
    assert launch_of(None, None, None, {"JAX_COORDINATOR_ADDRESS": "n1:1"}) == Launch("n1:1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("n0:7", 4, None), "--coordinator, --num-processes without --process-id"),
        (("n0:7", None, None), "without --num-processes, --process-id"),
        ((None, 4, 0), "without --coordinator"),
        (("n0", 4, 0), "HOST:PORT is wanted"),
        (("n0:7", 4, 4), "from 0 to 3"),
        (("n0:7", "four", 0), "whole numbers"),
    ],
)
def test_an_incomplete_or_impossible_launch_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        launch_of(*given, {})


def test_a_barrier_names_who_is_missing(tmp_path):
    folders = [HeartbeatFolder(tmp_path, index, 3) for index in range(3)]
    late = threading.Timer(0.3, folders[1].arrive, ["latents"])
    late.start()
    assert meet(folders[0], "latents", 1.0) == [2]
    assert meet(folders[2], "latents", 1.0) == []
    assert meet(folders[0], "other name/of 1 barrier", 0.1) == [1, 2]
    folders[1].beat(7, "training")
    assert folders[0].describe(1) == f"process 1 ({folders[1].host}, pid {os.getpid()})"
    assert "never seen" in folders[0].describe(2)


def test_the_first_last_word_stays_and_damaged_files_do_no_harm(tmp_path):
    heartbeats = HeartbeatFolder(tmp_path, 1, 3)
    heartbeats.report_exit("first", 75)
    heartbeats.report_exit("second", 1)
    (tmp_path / "ended_2.json").write_text('{"process": 2, "ho')
    (tmp_path / "beat_2.json").write_text("")
    assert [report.reason for report in heartbeats.exit_reports()] == ["first"]
    assert heartbeats.last_heartbeat(2) is None
    gone = HeartbeatFolder(tmp_path / "file", 0, 3)
    gone.folder.rmdir()
    gone.beat(1, "training")
    gone.report_exit("no folder", 75)
    assert gone.exit_reports() == [] and gone.missing("x") == [0, 1, 2]


def test_silence_counts_the_time_in_which_the_reader_itself_ran(tmp_path):
    now = [0.0]
    folders = [HeartbeatFolder(tmp_path, index, 3) for index in range(3)]
    silence = HeartbeatMonitor(folders[0], (1, 2), lambda: now[0])

    def later(seconds):
        now[0] += seconds
        return silence.silent_seconds()

    folders[1].beat(1, "training")
    folders[2].beat(1, "training")
    assert later(1) == {1: 0.0, 2: 0.0}
    folders[1].beat(2, "training")
    assert later(3) == {1: 0.0, 2: 3.0}
    # The reader was stopped for an hour: it cannot know that the others were silent.
    assert later(3600) == {1: 2 * BEAT_SECONDS, 2: 3 + 2 * BEAT_SECONDS}
    folders[2].beat(2, FINISHED)
    assert list(later(1)) == [1]


# The watchdog


def test_a_process_without_steps_ends_with_its_stacks_and_names_the_silent_one(python, tmp_path):
    program = """
    heartbeats = HeartbeatFolder(sys.argv[1], 0, 3, interval=0.5)
    with Watchdog(0.8, sys.argv[1] + "/stacks.txt", heartbeats) as watchdog:
        time.sleep(1.5)  # no step yet: compiling
        watchdog.beat(1)
        with watchdog.paused("validating"):
            time.sleep(1.5)
        watchdog.beat(2)
        def stuck_here():
            time.sleep(60)
        stuck_here()
    """
    alive = HeartbeatFolder(tmp_path, 1, 3)
    alive.beat(1, "training")
    process = python(program, tmp_path)
    for _ in range(60):
        if process.poll() is not None:
            break
        time.sleep(0.5)
        alive.beat(1, "reading")
    code, errors, last = ended(process)
    assert code == 75
    assert "process 0 of 3 ends: no step was completed for" in last and "after step 2" in last
    assert "No sign of life from process 2 (never seen; " in last
    assert f"Behind: process 1 ({alive.host}, pid {os.getpid()}) at step 1, reading" in last
    assert "stuck_here" in errors and "stuck_here" in (tmp_path / "stacks.txt").read_text()
    assert alive.exit_reports()[0].code == 75 and alive.exit_reports()[0].stacks


def test_a_process_ends_when_another_has_ended_or_fallen_silent(python, tmp_path):
    program = """
    heartbeats = HeartbeatFolder(sys.argv[1], 1, 3, interval=0.5)
    with Watchdog(0, sys.argv[1] + "/stacks.txt", heartbeats, float(sys.argv[2])):
        time.sleep(60)
    """
    noted, silent = tmp_path / "noted", tmp_path / "silent"
    HeartbeatFolder(noted, 2, 3).report_exit("it was killed.", 75)
    (HeartbeatFolder(silent, 0, 3)).beat(5, "training")
    first, second = python(program, noted, 90), python(program, silent, 3)
    code, _, last = ended(first)
    assert code == 75 and "process 1 of 3 ends: process 2 of 3" in last and "it was killed." in last
    code, _, last = ended(second)
    assert (
        code == 75
        and f"process 0 ({HeartbeatFolder(silent, 0, 3).host}, pid {os.getpid()}) gave no sign of life" in last
    )
    # Word of the one that cannot speak any more, for those who do not watch it.
    assert [report.process for report in HeartbeatFolder(silent, 2, 3).exit_reports()] == [0]


def test_nothing_happens_to_a_process_that_gets_on(python, tmp_path):
    program = """
    with Watchdog(1.0, sys.argv[1] + "/stacks.txt") as watchdog:
        for step in range(20):
            watchdog.beat(step)
            time.sleep(0.1)
    print("done", file=sys.stderr)
    """
    assert ended(python(program, tmp_path)) == (0, "done\n", "done")
    assert not list(tmp_path.iterdir())


# The supervisor

SUPERVISE = """
child = HEADER + sys.argv[1]
sys.exit(supervise([sys.executable, "-c", child, *sys.argv[2:]], grace_seconds=2))
"""


def supervise(python, child: str, *arguments) -> subprocess.Popen:
    return python(f"HEADER = {HEADER!r}\n" + SUPERVISE, textwrap.dedent(child), *arguments)


@pytest.mark.parametrize(
    ("child", "code", "message"),
    [
        ("sys.exit(2)", 2, None),
        ("os.kill(os.getpid(), signal.SIGKILL)", 75, "process 1 of 2 ends: it was killed by signal 9 (SIGKILL)"),
        ("os.abort()", 75, "JAX lost its coordination service, which process 0"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "signal 11 (SIGSEGV)"),
    ],
)
def test_every_end_becomes_an_exit_code_and_a_word_to_the_others(python, tmp_path, child, code, message):
    process = supervise(python, f"tell_supervisor(HeartbeatFolder(sys.argv[1], 1, 2)); {child}", tmp_path)
    found = process.communicate(timeout=30)[1]
    assert process.returncode == code
    (report,) = HeartbeatFolder(tmp_path, 0, 2).exit_reports()
    assert (report.process, report.code) == (1, code)
    if message:
        assert message in found.splitlines()[-1]


def test_an_abort_is_explained_by_the_last_words_of_another_process(python, tmp_path):
    child = """
    tell_supervisor(HeartbeatFolder(sys.argv[1], 1, 2))
    print("up", file=sys.stderr, flush=True)
    time.sleep(1)
    os.abort()
    """
    process = supervise(python, child, tmp_path)
    assert process.stderr.readline() == "up\n"
    time.sleep(2)
    HeartbeatFolder(tmp_path, 0, 2).report_exit("config.x is wrong.", 2)
    code, _, last = ended(process)
    assert code == 2 and "process 0 of 2" in last and "config.x is wrong." in last


def test_before_the_others_are_found_the_trouble_is_named(python):
    child = "tell_supervisor('Process 1 of 2 did not find all others.'); os.abort()"
    code, _, last = ended(supervise(python, child))
    assert code == 75 and "did not find all others" in last


def test_a_process_that_finds_nobody_says_so(python, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    child = """
    from brainldm.parallel import distributed
    from brainldm.parallel.launch import Launch
    distributed.start(Launch("127.0.0.1:1", 2, 1), connect_seconds=1)
    """
    code, _, last = ended(supervise(python, child), 120)
    assert code == 75 and "Process 1 of 2 did not find all others within 1 s" in last and "127.0.0.1:1" in last


def test_a_process_that_does_not_react_does_not_outlive_the_others(python, tmp_path):
    child = "tell_supervisor(HeartbeatFolder(sys.argv[1], 1, 2)); os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)"
    process = supervise(python, child, tmp_path)
    HeartbeatFolder(tmp_path, 0, 2).report_exit("it was killed.", 75)
    code, _, last = ended(process)
    assert code == 75 and "was killed, because it did not react" in last


def test_signals_go_through_and_the_child_does_not_outlive_its_supervisor(python, tmp_path):
    child = """
    signal.signal(signal.SIGTERM, lambda number, frame: (print("got it", file=sys.stderr), sys.exit(75)))
    with Watchdog(0, "unused", HeartbeatFolder(sys.argv[1], 1, 2), parent=supervised()):
        print(os.getpid(), file=sys.stderr, flush=True)
        time.sleep(60)
    """
    process = supervise(python, child, tmp_path)
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[:2] == (75, "got it\n")
    process = supervise(python, child, tmp_path)
    process.stderr.readline()
    process.kill()
    code, _, last = ended(process)  # reads until the child has closed its end
    assert code == -signal.SIGKILL and "is gone" in last
    (report,) = HeartbeatFolder(tmp_path, 0, 2).exit_reports()  # which ends the others
    assert report.process == 1 and "is gone" in report.reason
