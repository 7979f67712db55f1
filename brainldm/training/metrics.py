"""What a run writes about itself: metrics.jsonl (the source of truth), TensorBoard events, a picture of the curves.

`MetricWriter` has the method names of clu's metric writers, which would need TensorFlow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import MAX_READ, read_file, write_atomically
from brainldm.runtime.format import format_count
from brainldm.training.metric_lines import metric_line, read_lines


class MetricWriter:
    """Writes scalars and images of a run into its work dir.

    metrics.jsonl holds one object per line (see metric_lines.py), and nothing that depends on the clock, so that a
    resumed run writes the same file as an undisturbed one. `resume_step` drops lines of later steps, and those that
    were damaged, with a warning. While nothing can be written, as on a full disk, lines wait in memory
    (`require_written` says so) and images and TensorBoard events are left out. With `enabled` false, in all processes
    but one, nothing is written.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0, enabled: bool = True):
        self._workdir, self._enabled = Path(workdir), enabled
        self._path = self._workdir / "metrics.jsonl"
        self._waiting: list[str] = []
        self._error: OSError | None = None
        self._warned: set[str] = set()
        self._board: EventsWriter | None = None
        self._purge_step = resume_step or None
        if not enabled:
            return
        content = read_file(self._path, 4 * MAX_READ) if self._path.exists() else b""
        if resume_step and not self._path.exists():
            log(f"Warning: {self._path} is gone: the curve begins anew at step {resume_step}.")
        new = "".join(self._kept(content.decode(errors="replace"), resume_step)).encode()
        if new != content or not self._path.exists():
            write_atomically(self._path, new)
        self._size = len(new)

    def _kept(self, text: str, resume_step: int) -> list[str]:
        """The lines up to a step that are whole."""
        lines = text.split("\n")[:-1]  # after the last end: nothing, or what a kill cut off
        rows = read_lines(lines) if resume_step else []
        past = next((k for k, row in enumerate(rows) if row and row["step"] > resume_step), len(rows))
        damaged = [number for number, row in enumerate(rows[:past], 1) if row is None]
        kept = [line + "\n" for line, row in zip(lines, rows, strict=False) if row and row["step"] <= resume_step]
        if damaged:
            log(
                f"Warning: {self._path}: dropped {format_count(len(damaged), 'line')} up to step {resume_step} that "
                f"changed since being written (the first is line {damaged[0]}); {len(kept)} good ones are kept. The "
                "curve has a gap; training itself does not depend on it."
            )
        return kept

    def write_scalars(self, step: int, scalars: Mapping[str, float], split: str = "train") -> None:
        """One line of metrics.jsonl and the same values for TensorBoard."""
        if not self._enabled:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self._waiting.append(metric_line(step, split, values))
        self._write_lines()
        for name, value in values.items():
            self._add(step, lambda name=name, value=value: summary.scalar(f"{split}/{name}", value))

    def write_speed(self, step: int, samples_per_second: float) -> None:
        """Throughput, for TensorBoard only: it differs from run to run."""
        self._add(step, lambda: summary.scalar("speed/samples_per_second", samples_per_second))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures [H, W, 3] uint8 for TensorBoard."""
        for name, image in images.items():
            self._add(step, lambda name=name, image=image: summary.image(name, image, dataformats="HWC"))

    def optional(self, write: Callable[[], None]) -> None:
        """Call `write`, which writes a file that a run can do without: an OSError is a warning."""
        if not self._enabled:
            return
        try:
            write()
        except OSError as error:
            self._warn("images", error)

    def require_written(self) -> None:
        """Bring all lines to disk. Raises OSError when they cannot be written."""
        if self._enabled:
            self._write_lines()
            if self._waiting:
                raise self._error

    def close(self) -> None:
        """Write what waits, as far as that can be done, and close all files."""
        if self._enabled:
            self._write_lines()
            self._close_board()

    def _write_lines(self) -> None:
        """Append the lines that wait, all of them or none, so that a full disk leaves no half of a line."""
        if not self._waiting:
            return
        content = "".join(self._waiting).encode()
        try:
            with self._path.open("r+b") as file:
                file.seek(self._size)
                file.truncate()
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._error = error
            self._warn("metrics.jsonl", error, "Its lines wait in memory")
            return
        self._size += len(content)
        self._waiting.clear()
        self._warned.discard("metrics.jsonl")

    def _add(self, step: int, make: Callable[[], summary.Summary]) -> None:
        """Add an event to the TensorBoard file, which is given up at the first error and begun anew later: TensorBoard
        reads no further than a torn event. Written by this thread: tensorboardX's own waits for ever on a full disk."""
        if not self._enabled or self._waiting:
            return
        try:
            if self._board is None:
                suffix = f".{os.getpid()}.{time.monotonic_ns()}"  # a name of its own also within one second
                self._board = EventsWriter(str(self._workdir / "events"), filename_suffix=suffix)
                if self._purge_step is not None:  # hides what an earlier start wrote of later steps
                    log = SessionLog(status=SessionLog.START)
                    self._board.write_event(Event(wall_time=time.time(), step=self._purge_step, session_log=log))
                    self._purge_step = None
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=make()))
            self._board.flush()
        except OSError as error:
            self._warn("TensorBoard events", error)
            self._close_board()

    def _close_board(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            try:
                board.close()
            except OSError as error:
                self._warn("TensorBoard events", error)

    def _warn(self, what: str, error: OSError, then: str = "They are left out") -> None:
        if what not in self._warned:
            self._warned.add(what)
            log(f"Warning: {self._workdir}: {what} cannot be written ({error.strerror}). {then}; training goes on.")


def read_metrics(workdir: str | Path, split: str) -> dict[str, list[float]]:
    """Columns of metrics.jsonl for one split ("train" or "validation"), with "step" among them.

    A last line cut off by a kill is passed over. Raises UserError for any other line that is damaged.
    """
    path = Path(workdir) / "metrics.jsonl"
    columns: dict[str, list[float]] = {}
    text = read_file(path, 4 * MAX_READ).decode(errors="replace")
    for number, row in enumerate(read_lines(text.split("\n")[:-1]), 1):
        if row is None:
            raise UserError(f"{path}: line {number} is damaged. The run that wrote it goes on without it.")
        found = row.pop("split")
        if found == split:
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns


def plot_progress(workdir: str | Path) -> None:
    """Draw the training and validation loss over steps into progress.png."""
    from brainldm.reports.plots import loss_curves  # matplotlib takes a second to import

    columns = {split: read_metrics(workdir, split) for split in ("train", "validation")}
    loss_curves(columns, Path(workdir).name).savefig(Path(workdir) / "progress.png", dpi=100)
