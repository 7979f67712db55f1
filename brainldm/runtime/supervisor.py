"""A small process that starts the one that does the work and turns every end of it into an exit code and a last line.

The coordination service of JAX aborts a process when another one dies: in C++, within a tenth of a second when it is
process 0 that died, and no Python runs any more. Memory running out kills without a word as well. The process that
looks after it knows how it ended, tells the others of the run through their board, and lets nothing outlive them.
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
from brainldm.runtime.heartbeats import Board, Note

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


def tell_supervisor(what: Board | str) -> None:
    """Tell the supervisor, if there is one, what will have gone wrong if this process ends now, and later where the
    processes of the run leave word for each other."""
    if supervised():
        board = isinstance(what, Board)
        content = {"board": [str(what.folder), what.index, what.count]} if board else {"trouble": what}
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
    board = told.get("board")
    if code >= 0 and killed_for is None:
        if code and board and not _first_note(board):
            board.leave(f"it ended with exit code {code}; its own output says why.", code)
        return code
    return _explain(code, killed_for, board, told.get("trouble"))


def _listen(read: int, told: dict[str, Any]) -> None:
    with os.fdopen(read) as pipe:
        for line in pipe:
            content = json.loads(line)
            if "board" in content:
                content["board"] = Board(*content["board"])
            told.update(content)


def _wait(child: subprocess.Popen, told: Mapping[str, Any], grace_seconds: float) -> tuple[int, Note | None]:
    """The child's exit code, and the note of another process for whose end it had to be killed."""
    since = None
    while True:
        try:
            return child.wait(1.0), None
        except subprocess.TimeoutExpired:
            # A note about the child itself counts as well: the others have given it up.
            note = next(iter(told["board"].notes()), None) if "board" in told else None
        if note is None:
            continue
        since = time.monotonic() if since is None else since
        if time.monotonic() - since > grace_seconds:
            child.kill()
            return child.wait(), note


def _first_note(board: Board) -> Note | None:
    notes = [note for note in board.notes() if note.process != board.index]
    return notes[0] if notes else None


def _explain(code: int, killed_for: Note | None, board: Board | None, trouble: str | None) -> int:
    """Say why the child is gone, and return the exit code that this means."""
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    who = f"process {board.index} of {board.count}" if board else "this process"
    note = killed_for
    # An abort is what JAX does when another process is gone, whose supervisor is about to say so.
    if note is None and board is not None and -code == signal.SIGABRT:
        until = time.monotonic() + _NOTE_SECONDS
        while note is None and time.monotonic() < until:
            note = _first_note(board)
            time.sleep(0.2)
    if note is not None:
        ended = "was killed, because it did not react" if killed_for else "ends"
        other = f"process {note.process} of {board.count} ({note.host}) has ended: "
        log(f"brainldm: {who} {ended}: {'' if note.process == board.index else other}{note.reason}")
        return note.code
    if -code == signal.SIGABRT and board is not None and board.index:
        reason = f"it was aborted ({how}): JAX lost its coordination service, which {board.describe(0)} runs. {_AGAIN}"
    elif -code == signal.SIGABRT and board is None and trouble:
        reason = f"it was aborted ({how}). {trouble}"
    elif -code == signal.SIGKILL:
        reason = f"it was killed by {how}; a system out of memory does so. {_AGAIN}"
    else:
        reason = f"it was killed by {how}. {_AGAIN}"
    # A crash would most likely come again.
    code = 1 if -code in _CRASHES else Stopped.exit_code
    if board:
        board.leave(reason, code)
    log(f"brainldm: {who} ends: {reason}")
    return code
