"""Preemption signals: SIGTERM, SIGUSR1 and Ctrl-C, which a loop sees when it can stop with everything saved."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from brainldm.runtime.errors import Stopped

_STOP = (signal.SIGTERM, signal.SIGINT)
_WARN = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))
SAME_SIGNAL_SECONDS = 0.5
"""Signals this close together are one: a launcher sends SIGTERM to a group and passes it on as well."""

_AGAIN_SECONDS = 0.1


class PreemptionHandler:
    """Inside the `with`, SIGTERM, SIGUSR1 and Ctrl-C set `requested` instead of ending the process.

    A second SIGTERM or Ctrl-C ends the process at once with exit code 75: what is finished on disk stays, the rest is
    lost. That works even while Python waits for a long computation, because a thread sees the signals as well.
    SIGUSR1 is a warning that schedulers send ahead of SIGTERM, so it does not count as the first of two.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self):
        self.requested = False
        self._before = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._fd_before = -1

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is not threading.main_thread():
            return self
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        self._sockets = reading, writing
        self._fd_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
        for number in (*_STOP, *_WARN):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._sockets:
            signal.set_wakeup_fd(self._fd_before)
            self._sockets[1].close()  # ends the thread
            self._sockets = None

    def _request(self, number, frame) -> None:
        self.requested = True


def _watch(reading: socket.socket) -> None:
    """End the process at the second signal to stop."""
    first = None
    with reading:
        while received := reading.recv(64):
            for number in received:
                now = time.monotonic()
                if number not in _STOP:
                    continue
                if first is None:
                    first = now
                elif now - first > SAME_SIGNAL_SECONDS:
                    os.write(2, b"brainldm: told to stop a second time: stopped at once. What is finished stays.\n")
                    os._exit(Stopped.exit_code)


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
    """Inside the `with`, SIGTERM, SIGUSR1 and Ctrl-C raise KeyboardInterrupt. For work whose files are written whole or
    not at all, outside of a loop that looks at a PreemptionHandler. A signal that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def come_again(unraisable):
        # Python forgets what finalizers and callbacks of the garbage collector raise, so the signal is sent once more.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            hook(unraisable)

    heeded = [number for number in (*_STOP, *_WARN) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    hook, sys.unraisablehook = sys.unraisablehook, come_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
