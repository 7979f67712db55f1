"""One library in a process of its own: `python -m benchmarks.worker LIBRARY DEVICE SIZE THREADS FOLDER`.

It reads one JSON object a line and answers each with one. Times are taken here, around the work alone, so that pipes
and the other process do not count. FOLDER is where weights, noise and results are exchanged.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.cases import size_of
from brainldm.runtime.errors import BrainldmError, UserError

SECONDS_A_TURN = 0.1
"""Work that takes less is repeated within a turn until so much time is over."""

_MODULES = {"brainldm": "benchmarks.ours", "pytorch": "benchmarks.monai_torch", "tuned": "benchmarks.monai_torch"}


class Work(Protocol):
    """A case made ready: networks, weights and inputs on the device."""

    def first(self) -> None:
        """Compile where the library does, and run once, to the end."""

    def again(self) -> None:
        """Run once more, to the end."""

    def results(self) -> dict[str, np.ndarray]:
        """What `first` gave: arrays with channels last, gradients under MONAI's names after "gradient/"."""

    def costs(self) -> dict[str, float | None]:
        """ "flops" and "bytes" of one run; None where the library does not say."""


@dataclasses.dataclass
class Session:
    """What the worker answers from; one method for each request."""

    library: Any
    size: Any
    folder: Path
    name: str
    work: Any = None

    def describe(self) -> dict[str, Any]:
        return self.library.describe()

    def ceiling(self) -> dict[str, Any]:
        """FLOP/s of a large matrix product: the best of several."""
        product, flops = self.library.product()
        product()
        return {"flops_per_second": flops / min(_timed(product) for _ in range(5))}

    def weights(self, case: int) -> dict[str, Any]:
        self.library.write_weights(self.size.cases[case], self.folder)
        return {}

    def prepare(self, case: int) -> dict[str, Any]:
        self.work = None
        self.work = self.library.prepare(self.size.cases[case], self.folder)
        return {"memory_since_prepared": _forget_peak()}

    def first(self) -> dict[str, Any]:
        seconds = _timed(self.work.first)
        return {"seconds": seconds, "peak_bytes": self.library.peak_bytes() or _peak()}

    def results(self) -> dict[str, Any]:
        path = self.folder / f"{self.name}.npz"
        np.savez(path, **self.work.results())
        costs = self.work.costs()
        _forget_peak()
        return {"results": str(path), **costs}

    def again(self) -> dict[str, Any]:
        begun, spent, seconds = time.perf_counter(), time.process_time(), []
        while not seconds or time.perf_counter() - begun < SECONDS_A_TURN:
            seconds.append(_timed(self.work.again))
        processor = (time.process_time() - spent) / len(seconds)
        return {"seconds": seconds, "processor": processor, "peak_bytes": self.library.peak_bytes() or _peak()}


def _timed(function: Callable[[], None]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _peak() -> int:
    """Highest resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak() -> bool:
    """Count the peak from here on, without what was needed only to get ready. False where the system cannot."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size
    except (OSError, AttributeError):
        return False
    return True


def main(name: str, device: str, size: str, threads: str, folder: str) -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever a library prints goes to standard error

        def answer(content: dict[str, Any]) -> None:
            answers.write(json.dumps(content) + "\n")
            answers.flush()

        session = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if session is None:
                    _bind(int(threads))
                    library = importlib.import_module(_MODULES[name])
                    library = library.start(device, int(threads), tuned=name == "tuned")
                    session = Session(library, size_of(size, device), Path(folder), name)
                answer(getattr(session, request.pop("do"))(**request))
            except UserError as error:
                answer({"error": str(error), "user": True})
            except BrainldmError as error:
                answer({"error": str(error), "user": False})
            except Exception as error:  # told to the parent, which decides
                answer({"error": f"{type(error).__name__}: {str(error)[:2000]}", "user": False})


def _bind(threads: int) -> None:
    """Keep this process on as many cores: XLA makes its thread pool as large as there are."""
    with contextlib.suppress(AttributeError):  # not on every system
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    main(*sys.argv[1:])
