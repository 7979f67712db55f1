"""The parent's side: one process for each library, asked in turns."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case
from brainldm.runtime.errors import BrainldmError, UserError
from brainldm.runtime.format import format_shape

ROOT = Path(__file__).resolve().parents[1]

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
"""Relative L2 by which results may differ: more, and the libraries do not do the same work. Gradients of an absolute
difference jump where it is near zero, so rounding shows in them a hundred times more than in outputs."""


class Worker:
    """A library in its process. Use as a context manager; `ask` waits for the answer."""

    def __init__(self, library: str, device: str, size: str, threads: int, folder: Path):
        self.library = library
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "JAX_PLATFORMS": "cpu" if device == "cpu" else "cuda,cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a first call that finds its program compiled is none
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the other library needs room on the GPU too
            "NPROC": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, "-m", "benchmarks.worker", library, device, size, str(threads), str(folder)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # of a process that ended with words unread
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Raises BrainldmError (UserError where it is the user's mistake) when the work fails or the process ends."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise BrainldmError(
                f"The process of {self.library} ended with {code} at {do!r}; what it said stands above. Code -9 is "
                "mostly the system's, for want of memory: choose a smaller size."
            )
        answer = json.loads(line)
        if "error" in answer:
            kind = UserError if answer["user"] else BrainldmError
            raise kind(f"{self.library}: {answer['error']}")
        return answer


def compare(workers: Sequence[Worker], case: Case, index: int, rounds: int) -> dict[str, Any]:
    """Run a case through all workers in turns, once their results agree.

    Returns {"case", "shape", "steps", "guidance", "dtype", "note", "load_average" (of the machine, before),
    "ceiling_flops_per_second", "relative_l2" (None with one library), "libraries": {name: figures}}. Raises
    BrainldmError when results differ.
    """
    found: dict[str, dict[str, Any]] = {worker.library: {"times": [], "processor": []} for worker in workers}
    load = os.getloadavg()[0]
    ceilings = [worker.ask("ceiling")["flops_per_second"] for worker in workers]
    monai = [worker for worker in workers if worker.library != "brainldm"]
    if monai:
        monai[0].ask("weights", case=index)
    for worker in sorted(workers, key=lambda worker: worker.library != "brainldm"):  # it draws the noise for all
        found[worker.library].update(worker.ask("prepare", case=index))
    for worker in workers:
        first = worker.ask("first")
        found[worker.library].update(first=first["seconds"], peak=first["peak_bytes"])
        found[worker.library].update(worker.ask("results"))
    difference = _largest_difference([figures.pop("results") for figures in found.values()])
    if difference is not None and not difference <= TOLERANCES[case.dtype]:
        raise BrainldmError(
            f"{case.work}: the results of {' and '.join(found)} differ by {difference:.1e} (relative L2), so they do "
            "not do the same work. Nothing was timed."
        )
    for _ in range(rounds):
        for worker in workers:
            turn, figures = worker.ask("again"), found[worker.library]
            figures["times"] += turn["seconds"]
            figures["processor"].append(turn["processor"])
            figures["peak"] = max(figures["peak"], turn["peak_bytes"])
    ceiling = max(ceilings + [worker.ask("ceiling")["flops_per_second"] for worker in workers])
    return {
        "case": case.work,
        "shape": format_shape(case.shape),
        "steps": case.num_steps or None,
        "guidance": case.guidance,
        "dtype": case.dtype,
        "note": case.note,
        "load_average": load,
        "ceiling_flops_per_second": ceiling,
        "relative_l2": difference,
        "libraries": {name: _figures(figures, ceiling) for name, figures in found.items()},
    }


def _figures(found: dict[str, Any], ceiling: float) -> dict[str, Any]:
    times = found["times"]
    median = statistics.median(times)
    return {
        "median_s": median,
        "min_s": min(times),
        "max_s": max(times),
        "times_s": times,
        "processor_s": statistics.median(found["processor"]),
        "first_call_s": found["first"],
        "peak_bytes": found["peak"],
        "peak_is_of_the_work_alone": found["memory_since_prepared"],
        "flops": found["flops"],
        "bytes": found["bytes"],
        "share_of_ceiling": found["flops"] / median / ceiling,
    }


def _largest_difference(files: Sequence[str]) -> float | None:
    """Relative L2 between the first file's arrays and the others': all gradients as one vector, the rest by name."""
    if len(files) < 2:
        return None
    largest = 0.0
    with np.load(files[-1]) as reference:
        for file in files[:-1]:
            with np.load(file) as other:
                if set(other.files) != set(reference.files):
                    return float("nan")
                sums: dict[str, np.ndarray] = {}
                for name in reference.files:
                    a, b = (np.asarray(array[name], np.float64) for array in (other, reference))
                    if a.shape != b.shape:
                        return float("nan")
                    group = name.partition("/")[0]
                    sums[group] = sums.get(group, 0) + np.array([np.sum((a - b) ** 2), np.sum(b**2)])
                largest = max([largest, *(float(np.sqrt(off / all)) for off, all in sums.values())])
    return largest
