"""What a person sees while something runs: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time

import rich.progress as bars
from rich.console import Console

from brainldm.runtime.format import format_duration

SECONDS_BETWEEN_LINES = 10.0


def log(text: str) -> None:
    """A line for the person, on standard error: standard output is for results.

    A log that cannot be written, as on a full disk, ends nothing.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def make_streams_safe() -> None:
    """What was closed before the start takes what is written and keeps nothing, and a letter that the encoding of the
    shell does not have is written as its code."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class Progress:
    """Progress of `total` things, of which `start` were done before. Use as a context manager; call it with the
    number done so far and a short note.

    The first `warm_up` calls, which wait for a compilation, do not count for the time left: it is not said before.
    """

    def __init__(self, what: str, total: int, start: int = 0, warm_up: int = 0):
        self._what, self._total, self._start, self._warm_up = what, total, start, warm_up
        self._began = time.monotonic()
        self._last_line = self._began
        self._calls, self._since = 0, (start, self._began)  # done by then, and when: where the rate counts from
        self._bar: bars.Progress | None = None
        if sys.stderr.isatty():
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TimeElapsedColumn(),
                bars.TextColumn("left"),
                bars.TimeRemainingColumn(),
                bars.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, completed=start, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None:
            log(f"{self._what}: {self._total} done in {format_duration(time.monotonic() - self._began)}")

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        self._calls += 1
        if self._calls == self._warm_up:
            self._since = (done, now)
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES and self._start < done < self._total:
            self._last_line = now
            parts = [f"{done}/{self._total}"]
            if self._calls > self._warm_up and done > self._since[0]:
                left = (now - self._since[1]) / (done - self._since[0]) * (self._total - done)
                parts.append(f"{format_duration(left)} left")
            log(f"{self._what}: {', '.join([*parts, note] if note else parts)}")


class Phases:
    """One Progress after another, each opened by the first call that names it. Use as a context manager."""

    def __init__(self):
        self._what, self._counter = "", None

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._counter is not None:
            self._counter.__exit__(kind, error, trace)
            self._counter = None

    def __call__(self, what: str, done: int, total: int, note: str = "", warm_up: int = 0) -> None:
        """`done` of `total` things are done; the first call says how many were done before. See Progress."""
        if what != self._what:
            self.__exit__(None, None, None)
            self._what, self._counter = what, Progress(what, total, done, warm_up)
            self._counter.__enter__()
        self._counter(done, note)
