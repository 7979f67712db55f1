"""Where the processes of one run tell each other how they are: small files in a folder that all of them see.

Each process writes `beat_K.json` again and again: its host, its step, what it is doing and a counter. Who ends before
the work is done leaves `ended_K.json`, which says why. Nothing compares the clocks of two hosts: a process is silent
when its counter stands still while the reader's own time goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

BEAT_SECONDS = 2.0
"""How often a process writes, and how often the others look, unless a limit of silence asks for more."""


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """A sign of life: process `process` with `pid` on `host` is at `step`, doing `doing` (FINISHED at the end)."""

    process: int
    host: str
    pid: int
    count: int
    step: int
    doing: str

    def __str__(self) -> str:
        return f"process {self.process} ({self.host}, pid {self.pid})"


@dataclasses.dataclass(frozen=True)
class ExitReport:
    """Why a process ended, in a sentence, and the exit code that this means for the whole run.

    `stacks`: whether it hung, so that the stacks of the others may say why.
    """

    process: int
    host: str
    reason: str
    code: int
    stacks: bool = False


FINISHED = "finished"


class HeartbeatFolder:
    """The view of process `index` of `count` on the files in `folder`, which is made when it is not there.

    Each process writes and looks every `interval` seconds. Reading and writing never raise: a file system that is away
    for a moment must not end a run.
    """

    def __init__(self, folder: str | Path, index: int, count: int, interval: float = BEAT_SECONDS):
        self.folder, self.index, self.count, self.interval = Path(folder), index, count, interval
        self.host = socket.gethostname()
        self._beats = 0
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)

    def beat(self, step: int, doing: str) -> None:
        """Give a sign of life."""
        self._beats += 1
        self._write(f"beat_{self.index}", Heartbeat(self.index, self.host, os.getpid(), self._beats, step, doing))

    def last_heartbeat(self, process: int) -> Heartbeat | None:
        """The newest sign of life of a process."""
        return self._read(f"beat_{process}", Heartbeat)

    def report_exit(self, reason: str, code: int, stacks: bool = False, process: int | None = None) -> None:
        """Say why this process (or `process`, which cannot say it any more) ended. The first reason stays."""
        process = self.index if process is None else process
        if not (self.folder / f"ended_{process}.json").exists():
            beat = self.last_heartbeat(process)
            host = beat.host if beat else self.host
            self._write(f"ended_{process}", ExitReport(process, host, reason, code, stacks))

    def exit_reports(self) -> list[ExitReport]:
        """The processes that ended before the work was done."""
        names = sorted(self._names("ended_"))
        return [report for name in names if (report := self._read(name, ExitReport)) is not None]

    def wait_for_readers(self) -> None:
        """Wait in process 0 until the others have read why it ends: JAX aborts them as soon as it is gone."""
        if self.index == 0 and self.count > 1:
            time.sleep(2 * self.interval)

    def arrive(self, barrier: str) -> None:
        """Say that this process has come to a barrier."""
        self._write(f"at_{_file_name(barrier)}_{self.index}", {})

    def missing(self, barrier: str) -> list[int]:
        """The processes that have not come to a barrier yet."""
        prefix = f"at_{_file_name(barrier)}_"
        there = {name.removeprefix(prefix) for name in self._names(prefix)}
        return [process for process in range(self.count) if str(process) not in there]

    def describe(self, process: int) -> str:
        """A process by number, and by host and pid where it has given a sign of life."""
        return str(self.last_heartbeat(process) or f"process {process} (never seen; {self.folder} is for all to share)")

    def _names(self, prefix: str) -> list[str]:
        try:
            return [name[: -len(".json")] for name in os.listdir(self.folder) if name.startswith(prefix)]
        except OSError:
            return []

    def _write(self, name: str, content) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}"
        values = dataclasses.asdict(content) if dataclasses.is_dataclass(content) else content
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(values))
            os.replace(temporary, self.folder / f"{name}.json")

    def _read(self, name: str, kind: type):
        try:
            return kind(**json.loads((self.folder / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)


class HeartbeatMonitor:
    """How long processes have given no sign of life, in seconds of this process's own running time."""

    def __init__(
        self, heartbeats: HeartbeatFolder, watched: Collection[int], clock: Callable[[], float] = time.monotonic
    ):
        self._folder, self._clock, self._last = heartbeats, clock, clock()
        self._seen: dict[int, tuple[Heartbeat | None, float]] = {process: (None, 0.0) for process in watched}

    def silent_seconds(self) -> dict[int, float]:
        """Seconds of silence by process; those that have finished are left out."""
        now = self._clock()
        # A reader that stood still itself (stopped, or waiting for the file system) learnt nothing meanwhile.
        passed, self._last = min(now - self._last, 2 * self._folder.interval), now
        for process, (before, silent) in self._seen.items():
            beat = self._folder.last_heartbeat(process)
            self._seen[process] = (beat, silent + passed) if beat is None or beat == before else (beat, 0.0)
        return {
            process: silent for process, (beat, silent) in self._seen.items() if beat is None or beat.doing != FINISHED
        }
