"""What was measured as a table for a terminal, and as rows for docs/benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brainldm.reports.text import text_table
from brainldm.runtime.files import write_atomically

NAMES = {"pytorch": "PyTorch", "tuned": "PyTorch, tuned", "brainldm": "brainldm"}
HEAD = (
    "work",
    "input",
    "library",
    "seconds",
    "min to max",
    "/ ours",
    "processor s",
    "first call",
    "peak GiB",
    "TFLOP",
    "GB",
    "of ceiling, TFLOP/s",
    "rel. L2",
)


def heading(run: dict[str, Any]) -> str:
    """Date, code, device, threads: two runs under one heading are parts of one."""
    threads = f", {run['threads']} threads" if run["threads"] else ""
    return f"{run['date']}, brainldm {run['code']}, {run['device']}{threads}"


def versions(run: dict[str, Any]) -> str:
    """The versions of everything that computes, on one line."""
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())


def lines(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """A case under HEAD: one line for each library; what holds for all of them stands in the first."""
    work = row["case"] + (f", {row['steps']} steps" if row["steps"] else "")
    work += f", guidance {row['guidance']:g}" if row["guidance"] != 1 else ""
    work += f", {row['note']}" if row["note"] else ""
    difference = "" if row["relative_l2"] is None else f"{row['relative_l2']:.0e}"
    ceiling = f" of {row['ceiling_flops_per_second'] / 1e12:.3g}"
    ours = row["libraries"].get("brainldm")
    return [
        (
            work if number == 0 else "",
            row["shape"] if number == 0 else "",
            NAMES[name],
            f"{of['median_s']:.3g}",
            f"{of['min_s']:.3g} to {of['max_s']:.3g}",
            f"{of['median_s'] / ours['median_s']:.2f}" if ours and of is not ours else "",
            f"{of['processor_s']:.3g}",
            f"{of['first_call_s']:.3g}",
            f"{of['peak_bytes'] / 2**30:.2f}",
            _number(of["flops"], 1e12),
            _number(of["bytes"], 1e9),
            f"{of['share_of_ceiling']:.0%}{ceiling if number == 0 else ''}",
            difference if number == 0 else "",
        )
        for number, (name, of) in enumerate(row["libraries"].items())
    ]


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.3g}"


def table(report: dict[str, Any]) -> str:
    """The whole as text."""
    run = report["run"]
    rows = [line for row in report["rows"] for line in lines(row)]
    return "\n".join([heading(run), versions(run), *text_table(rows, HEAD, indent=0, width=160)])


def record(report: dict[str, Any], folder: Path) -> Path:
    """Append the rows to DEVICE_SIZE.md of `folder` and return its path.

    They go under the last heading when that is the same, so that a size can be measured in parts.
    """
    run = report["run"]
    path = folder / f"{run['kind']}_{run['size']}.md"
    text = path.read_text() if path.exists() else f"# {run['size']}, {run['kind']}\n"
    title = f"## {heading(run)}"
    if title not in text.splitlines() or title not in text[text.rindex("\n## ") :]:
        text += f"\n{title}\n\n{versions(run)}.\n\n{_markdown(HEAD)}{_markdown(['---'] * len(HEAD))}"
    text += "".join(_markdown(line) for row in report["rows"] for line in lines(row))
    write_atomically(path, text.encode())
    return path


def _markdown(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |\n"
