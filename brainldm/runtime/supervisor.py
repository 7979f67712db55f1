"""A small process that starts the one that does the work and turns every end of it into an exit code and a last line.

The coordination service of JAX aborts a process when another one dies: in C++, within a tenth of a second when it is
process 0 that died, and no Python runs any more. Memory running out kills without a word as well. The process that
looks after it knows how it ended, tells the others of the run through their heartbeat folder, and lets nothing outlive
them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from brainldm.runtime.console import log
from brainldm.runtime.errors import Stopped
from brainldm.runtime.heartbeats import ExitReport, HeartbeatFolder

PIPE = "BRAINLDM_SUPERVISOR"
"""Environment variable of a supervised process: the pid of its supervisor and where to write to it, "PID:FD"."""

GRACE_SECONDS = 30.0
"""How long a process may go on after another one has ended before it is killed."""

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_NOTE_SECONDS = 5.0
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_AGAIN = "The same command goes on from the last checkpoint."


def supervised() -> int | None:
    """The pid of the process that looks after this one, or None."""
    parent = int(os.environ.get(PIPE, "0:").partition(":")[0])
    return parent if parent and parent == os.getppid() else None


def tell_supervisor(what: HeartbeatFolder | str) -> None:
    """Tell the supervisor, if there is one, what will have gone wrong if this process ends now, and later where the
    processes of the run tell each other how they are."""
    if supervised():
        heartbeats = isinstance(what, HeartbeatFolder)
        content = {"heartbeats": [str(what.folder), what.index, what.count]} if heartbeats else {"trouble": what}
        os.write(int(os.environ[PIPE].partition(":")[2]), (json.dumps(content) + "\n").encode())


def supervise(
    command: Sequence[str], grace_seconds: float = GRACE_SECONDS, environment: Mapping[str, str] | None = None
) -> int:
    """Run `command` as a supervised process, forward signals to it, and return the exit code of the whole.

    Its own exit code, when it ends by itself; 75 when it is killed or aborted, 1 when it crashes; that of the first of
    the others that ended, when one did.
    """
    read, write = os.pipe()
    # A session of its own, so that Ctrl-C reaches it once, through us, and not twice.
    child = subprocess.Popen(
        command,
        env={**(os.environ if environment is None else environment), PIPE: f"{os.getpid()}:{write}"},
        pass_fds=(write,),
        start_new_session=True,
    )
    os.close(write)
    before = {number: signal.signal(number, lambda number, _: child.send_signal(number)) for number in _FORWARDED}
    told: dict[str, Any] = {}
    listener = threading.Thread(target=_listen, args=(read, told), daemon=True)
    listener.start()
    try:
        code, killed_for = _wait(child, told, grace_seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    listener.join(1.0)
    heartbeats = told.get("heartbeats")
    if code >= 0 and killed_for is None:
        if code and heartbeats and not _first_report(heartbeats):
            heartbeats.report_exit(f"it ended with exit code {code}; its own output says why.", code)
        return code
    return _explain(code, killed_for, heartbeats, told.get("trouble"))


def _listen(read: int, told: dict[str, Any]) -> None:
    with os.fdopen(read) as pipe:
        for line in pipe:
            content = json.loads(line)
            if "heartbeats" in content:
                content["heartbeats"] = HeartbeatFolder(*content["heartbeats"])
            told.update(content)


def _wait(child: subprocess.Popen, told: Mapping[str, Any], grace_seconds: float) -> tuple[int, ExitReport | None]:
    """The child's exit code, and the report of another process for whose end it had to be killed."""
    since = None
    while True:
        try:
            return child.wait(1.0), None
        except subprocess.TimeoutExpired:
            # A report about the child itself counts as well: the others have given it up.
            report = next(iter(told["heartbeats"].exit_reports()), None) if "heartbeats" in told else None
        if report is None:
            continue
        since = time.monotonic() if since is None else since
        if time.monotonic() - since > grace_seconds:
            child.kill()
            return child.wait(), report


def _first_report(heartbeats: HeartbeatFolder) -> ExitReport | None:
    reports = [report for report in heartbeats.exit_reports() if report.process != heartbeats.index]
    return reports[0] if reports else None


def _explain(code: int, killed_for: ExitReport | None, heartbeats: HeartbeatFolder | None, trouble: str | None) -> int:
    """Say why the child is gone, and return the exit code that this means."""
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    who = f"process {heartbeats.index} of {heartbeats.count}" if heartbeats else "this process"
    report = killed_for
    # An abort is what JAX does when another process is gone, whose supervisor is about to say so.
    if report is None and heartbeats is not None and -code == signal.SIGABRT:
        until = time.monotonic() + _NOTE_SECONDS
        while report is None and time.monotonic() < until:
            report = _first_report(heartbeats)
            time.sleep(0.2)
    if report is not None:
        ended = "was killed, because it did not react" if killed_for else "ends"
        other = f"process {report.process} of {heartbeats.count} ({report.host}) has ended: "
        log(f"brainldm: {who} {ended}: {'' if report.process == heartbeats.index else other}{report.reason}")
        return report.code
    if -code == signal.SIGABRT and heartbeats is not None and heartbeats.index:
        reason = (
            f"it was aborted ({how}): JAX lost its coordination service, which {heartbeats.describe(0)} runs. {_AGAIN}"
        )
    elif -code == signal.SIGABRT and heartbeats is None and trouble:
        reason = f"it was aborted ({how}). {trouble}"
    elif -code == signal.SIGKILL:
        reason = f"it was killed by {how}; a system out of memory does so. {_AGAIN}"
    else:
        reason = f"it was killed by {how}. {_AGAIN}"
    # A crash would most likely come again.
    code = 1 if -code in _CRASHES else Stopped.exit_code
    if heartbeats:
        heartbeats.report_exit(reason, code)
    log(f"brainldm: {who} ends: {reason}")
    return code
