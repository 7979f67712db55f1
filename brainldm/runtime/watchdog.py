"""A thread that ends the process instead of letting it hang, and says why.

Another process that died leaves the rest of a run waiting in a collective operation for ever, and so does one that is
alive but stuck. Python cannot interrupt such a wait, so the way out is to end the process, with the exit code that
tells a scheduler to start it again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from brainldm.runtime.console import log
from brainldm.runtime.errors import Stopped
from brainldm.runtime.format import format_duration
from brainldm.runtime.heartbeats import FINISHED, HeartbeatFolder, HeartbeatMonitor

AGAIN = "The same command goes on from the last checkpoint."
_REPORT_SECONDS = 10.0


class Watchdog:
    """Ends the process with exit code 75 when no step is completed for `step_seconds` (0: never), when another process
    of `heartbeats` has ended before the work is done or has given no sign of life for `silence_seconds` (0: never), or
    when the process `parent` is gone.

    Use as a context manager. It starts paused, and steps count from the first `beat`. The stacks of all threads go to
    standard error and to `stacks` (a file), and the last line says what happened.
    """

    def __init__(
        self,
        step_seconds: float,
        stacks: str | Path,
        heartbeats: HeartbeatFolder | None = None,
        silence_seconds: float = 0,
        parent: int | None = None,
    ):
        self.step_seconds, self.heartbeats = step_seconds, heartbeats
        self._stacks, self._silence_seconds, self._parent = Path(stacks), silence_seconds, parent
        self._step, self._doing, self._paused = 0, "starting", 1
        self._signs = 0  # of getting on, counted by the main thread and seen by the clock
        self._stop = threading.Event()
        self._ending = threading.Lock()
        # Two threads: a file system that hangs must not keep the clock from running.
        self._threads = [threading.Thread(target=self._watch_clock, daemon=True)]
        if heartbeats is not None:
            self._threads.append(threading.Thread(target=self._watch_others, daemon=True))

    def __enter__(self) -> Watchdog:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop.set()
        if self.heartbeats is not None:
            self.heartbeats.beat(self._step, FINISHED)

    def beat(self, step: int) -> None:
        """A step was completed."""
        if self._doing == "starting":
            self._doing, self._paused = "training", self._paused - 1
        self._step = step
        self._signs += 1

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """While something other than steps goes on, which may take as long as it takes."""
        before, self._doing = self._doing, doing
        self._paused += 1
        try:
            yield
        finally:
            self._signs += 1
            self._paused -= 1
            self._doing = before

    def _watch_clock(self) -> None:
        tick = min(1.0, self.step_seconds / 5 or 1.0)
        last, seen, waited = time.monotonic(), 0, 0.0
        while not self._stop.wait(tick):
            now = time.monotonic()
            # Time in which this process was stopped itself (Ctrl-Z, a debugger) does not count.
            passed, last = min(now - last, 2 * tick), now
            if self._parent is not None and os.getppid() != self._parent:
                self._end(f"the process that looks after it (pid {self._parent}) is gone. {AGAIN}")
            if self._paused or self._signs != seen:
                seen, waited = self._signs, 0.0
                continue
            waited += passed
            if self.step_seconds and waited > self.step_seconds:
                reason = f"no step was completed for {format_duration(waited)} after step {self._step}."
                self._end(reason, stacks=True, ask=True)

    def _watch_others(self) -> None:
        heartbeats = self.heartbeats
        # Process 0 watches all, and they watch process 0: what it costs grows with their number, not with its square.
        watched = range(1, heartbeats.count) if heartbeats.index == 0 else (0,)
        silence = HeartbeatMonitor(heartbeats, watched)
        while True:
            heartbeats.beat(self._step, self._doing)
            for report in heartbeats.exit_reports():
                if report.process != heartbeats.index and not self._stop.is_set():
                    self._end(
                        f"process {report.process} of {heartbeats.count} ({report.host}) has ended: {report.reason}",
                        report.code,
                        report.stacks,
                        own_reason=False,
                    )
            for process, seconds in silence.silent_seconds().items():
                if self._silence_seconds and seconds > self._silence_seconds and not self._stop.is_set():
                    reason = f"it gave no sign of life for {format_duration(seconds)}. {AGAIN}"
                    who = heartbeats.describe(process)
                    heartbeats.report_exit(reason, Stopped.exit_code, process=process)
                    self._end(f"{who} gave no sign of life for {format_duration(seconds)}. {AGAIN}", own_reason=False)
            if self._stop.wait(heartbeats.interval):
                return

    def _end(
        self,
        reason: str,
        code: int = Stopped.exit_code,
        stacks: bool = False,
        own_reason: bool = True,
        ask: bool = False,
    ) -> None:
        """Say why, and end the process without asking anyone."""
        self._ending.acquire()  # never given back: whoever comes second waits for the end
        if stacks:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        told = [reason]

        def report() -> None:
            if stacks:
                self._stacks.parent.mkdir(parents=True, exist_ok=True)
                with open(self._stacks, "w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
            if ask:
                told.append(self._behind() + f"The stacks of all threads are in {self._stacks}. {AGAIN}")
            if own_reason and self.heartbeats is not None:
                self.heartbeats.report_exit(" ".join(told), code, stacks)

        # What touches the file system gets a time limit of its own: it may be what hangs.
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        reporter.join(_REPORT_SECONDS)
        if self.heartbeats is not None:
            self.heartbeats.wait_for_readers()
        who = (
            f"process {self.heartbeats.index} of {self.heartbeats.count} "
            if self.heartbeats and self.heartbeats.count > 1
            else ""
        )
        log(f"brainldm: {who}ends: {' '.join(told)}")
        os._exit(code)

    def _behind(self) -> str:
        """Which processes are silent, and which are at an earlier step than the rest."""
        heartbeats = self.heartbeats
        if heartbeats is None or heartbeats.count == 1:
            return ""
        others = [process for process in range(heartbeats.count) if process != heartbeats.index]
        before = {process: heartbeats.last_heartbeat(process) for process in others}
        time.sleep(2.5 * heartbeats.interval)
        now = {process: heartbeats.last_heartbeat(process) for process in others}
        silent = [p for p in others if now[p] is None or (now[p] == before[p] and now[p].doing != FINISHED)]
        text = ""
        if silent:
            text += f"No sign of life from {', '.join(heartbeats.describe(p) for p in silent)}. "
        furthest = max([self._step, *(beat.step for beat in now.values() if beat)])
        late = [beat for p, beat in now.items() if beat and p not in silent and beat.step < furthest]
        if late:
            text += f"Behind: {', '.join(f'{beat} at step {beat.step}, {beat.doing}' for beat in late)}. "
        return text
