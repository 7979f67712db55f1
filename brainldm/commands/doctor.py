"""The command `doctor`: what this installation and machine can do."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "doctor",
        run,
        "look at the installation and the machine: versions, devices, memory, what fits, what to install",
        "brainldm doctor\n\nExit code 1 when something has to be mended.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> None:
    from brainldm.planning.doctor import examine, require_sound
    from brainldm.reports.text import text_table

    findings = examine()
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        rows = [(finding.what, finding.found, finding.to_do) for finding in findings]
        print("\n".join(text_table(rows, ("what", "found", "to do"), indent=0)))
    require_sound(findings)
