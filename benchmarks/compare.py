"""The command: which libraries, which cases, where the figures go."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report as reports
from benchmarks.cases import SIZES, WORK, Size, size_of
from benchmarks.turns import ROOT, Worker, compare
from brainldm.runtime.console import log
from brainldm.runtime.errors import BrainldmError, Stopped, UserError
from brainldm.runtime.files import write_json

FORMAT = {"format": "brainldm-benchmark", "format_version": 1}
LIBRARIES = {"pytorch": "pytorch", "tuned": "tuned", "ours": "brainldm"}
REFERENCE = ("torch", "monai", "einops")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        report = measure(options)
        print(reports.table(report))
        if options.json:
            write_json(options.json, report)
        if options.record:
            log(f"rows appended to {reports.record(report, options.record)}")
        return 0
    except BrainldmError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"benchmarks: {error.filename}: {error.strerror}. Give another path.", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("benchmarks: stopped; nothing was written.", file=sys.stderr)
        return Stopped.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time MONAI on PyTorch and brainldm in turns: same weights, shapes, precision and batch.",
        epilog="work: " + "; ".join(f"{name}: {what}" for name, what in WORK.items()),
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small", help="small for CI, the demo's shapes, the paper's")
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME,NAME",
        help=f"of the work ({', '.join(WORK)}) and of the libraries ({', '.join(LIBRARIES)}; tuned is PyTorch with "
        "torch.compile and channels last, by default only on a GPU)",
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="cores for each library (default 2)")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each library (default: as the size says)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    parser.add_argument(
        "--record",
        type=Path,
        nargs="?",
        const=ROOT / "docs/benchmarks",
        metavar="FOLDER",
        help="append rows to DEVICE_SIZE.md of this folder (docs/benchmarks when none is named)",
    )
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"run": what ran where, "rows": one for each case}. Raises UserError for what cannot be run here."""
    size = size_of(options.size, options.device)
    libraries, cases = _chosen(options.only, options.device, size)
    _check(options, libraries)
    rounds = options.rounds or size.rounds

    def open_workers(stack: contextlib.ExitStack, folder: Path) -> list[Worker]:
        where = (options.device, options.size, options.threads, folder)
        return [stack.enter_context(Worker(library, *where)) for library in libraries]

    rows, said = [], {}
    with contextlib.ExitStack() as outer:
        for number, index in enumerate(cases):
            with contextlib.ExitStack() as inner:
                case = size.cases[index]
                stack = inner if size.fresh else outer
                if number == 0 or size.fresh:
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="brainldm-benchmark-")))
                    workers = open_workers(stack, folder)
                    said = {worker.library: worker.ask("describe") for worker in workers}
                for old in folder.iterdir():
                    old.unlink()
                rows.append(compare(workers, case, index, rounds))
                log(f"{case.work}: done, {number + 1} of {len(cases)}")
    return {**FORMAT, "run": _run(options, libraries, rounds, said), "rows": rows}


def _chosen(only: str, device: str, size: Size) -> tuple[list[str], list[int]]:
    names = [name for name in only.split(",") if name]
    known = [case.work for case in size.cases]
    unknown = [name for name in names if name not in LIBRARIES and name not in known]
    if unknown:
        raise UserError(
            f"--only {unknown[0]}: this size has {', '.join(known)}; the libraries are {', '.join(LIBRARIES)}."
        )
    libraries = [LIBRARIES[name] for name in LIBRARIES if name in names]
    default = ["pytorch", "brainldm"] if device == "cpu" else list(LIBRARIES.values())
    works = [name for name in names if name in known] or known
    return libraries or default, [index for index, work in enumerate(known) if work in works]


def _check(options: argparse.Namespace, libraries: list[str]) -> None:
    missing = [name for name in REFERENCE if importlib.util.find_spec(name) is None]
    if missing and libraries != ["brainldm"]:
        raise UserError(
            f"{', '.join(missing)} cannot be imported here, so there is nothing to compare with. Install the extra "
            "(pip install 'brainldm[compare]'), or measure brainldm alone with --only ours."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= options.threads <= cores:
        raise UserError(f"--threads {options.threads}: this process may use 1 to {cores} cores.")
    if options.rounds is not None and options.rounds < 1:
        raise UserError(f"--rounds {options.rounds}: at least 1 is wanted.")


def _run(options: argparse.Namespace, libraries: list[str], rounds: int, said: dict[str, Any]) -> dict[str, Any]:
    versions = {name: version for answer in said.values() for name, version in answer["versions"].items()}
    devices = [answer["device"] for answer in said.values()]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "code": _code(),
        "kind": options.device,
        "size": options.size,
        "device": _processor() if options.device == "cpu" else devices[0],
        "threads": options.threads if options.device == "cpu" else None,
        "rounds": rounds,
        "libraries": libraries,
        "versions": {"python": platform.python_version(), **versions},
    }


def _code() -> str:
    """The last commit that changed the package, with a plus where it was changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words, "--", "brainldm"], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("log", "-1", "--format=%h")
    return (commit or "unknown") + ("+" if git("status", "--porcelain") else "")


def _processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M):
            return found[1]
    return platform.processor() or platform.machine()
