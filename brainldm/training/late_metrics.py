"""The metrics of training steps on their way from the devices to the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

NOT_SUMMED = ("learning_rate",)
"""Metrics of which a line gives the last value: those of a schedule. Of all others it gives the mean."""


class LateMetrics:
    """Reads the metrics of a step when the next one is under way, so that the devices are never idle.

    `names` are the scans that a batch's indices point to. `progress` holds the sums since the last line of the log
    under "sums" and "count"; it is part of a checkpoint.
    """

    def __init__(self, names: Sequence[str], progress: dict[str, Any], log: Callable[[int, dict[str, float]], None]):
        """`log(step, values)` is called at every step, with what a line of the log would hold."""
        self._names, self._progress, self._log = names, progress, log
        self._waiting: tuple[int, dict[str, jax.Array], np.ndarray] | None = None

    def add(self, step: int, metrics: dict[str, jax.Array], scans: np.ndarray) -> None:
        """Take the metrics of `step`, which is under way, and read those of the step before."""
        before, self._waiting = self._waiting, (step, metrics, scans)
        self._read(before)

    def read(self) -> None:
        """Read what waits. Raises FloatingPointError naming the scans of the batch when it is not finite."""
        waiting, self._waiting = self._waiting, None
        self._read(waiting)

    def _read(self, waiting: tuple[int, dict[str, jax.Array], np.ndarray] | None) -> None:
        if waiting is None:
            return
        step, metrics, scans = waiting
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(map(math.isfinite, values.values())):
            names = sorted({self._names[i] for i in scans})
            raise FloatingPointError(
                f"The loss of step {step} is not finite ({values}). Nothing of it is saved. The batch "
                f"held {', '.join(names)}. Look at these scans; if they are sound, lower "
                "config.optimizer.learning_rate or use config.model.dtype='float32'."
            )
        sums, count = self._progress["sums"], self._progress["count"]
        for name, value in values.items():
            # A checkpoint of an older version may hold sums that lack a metric: its next line goes without it.
            if name not in NOT_SUMMED and (name in sums or not count):
                sums[name] = sums.get(name, 0.0) + value
        self._progress["count"] = count + 1
        self._log(step, values)

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """What a line of the log holds, given the last `values`; the sums begin anew."""
        sums, count = self._progress["sums"], self._progress["count"]
        line = {name: total / count for name, total in sums.items()}
        line |= {name: values[name] for name in NOT_SUMMED if name in values}
        self._progress.update(count=0, sums={}, loss=line["loss"])
        return line
