"""A profile of some training steps, for TensorBoard's profile plug-in or xprof."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections

from brainldm.runtime.console import log

FOLDER = "profile"


class ProfileWindow:
    """Marks every step by its number, and traces the steps that `options` (config.profile) asks for into `workdir`.

    Process 0 alone writes (`enabled`). Use as a context manager, which closes a window that a run ends in.
    """

    def __init__(self, options: ml_collections.ConfigDict, workdir: Path, enabled: bool = True):
        self._folder, self._active = workdir / FOLDER, False
        self._first = options.first_step if enabled else 0
        self._last = self._first + options.num_steps - 1

    def __enter__(self) -> ProfileWindow:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around all that belongs to a step: its batch, its computation."""
        if self._first and number == self._first:
            self._folder.mkdir(exist_ok=True)
            jax.profiler.start_trace(self._folder)
            self._active = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, results: Any) -> None:
        """Close the window after its last step, once the devices have its `results`."""
        if self._active and number >= self._last:
            jax.block_until_ready(results)
            self._stop()
            log(f"steps {self._first} to {self._last} are profiled: tensorboard --logdir {self._folder}")

    def _stop(self) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
