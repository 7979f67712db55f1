"""The command `verify`: the files of a generated dataset against its manifests."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from brainldm.runtime.errors import BrainldmError

_SHOWN = 20
"""Files that are listed without --json."""


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "verify",
        run,
        "compare the files of a generated dataset with its manifests",
        "brainldm verify ./many --full\n\nExit code 1 when a file is missing, changed or in no manifest.",
    )
    parser.add_argument("out", metavar="OUT", help="folder that `generate` filled")
    parser.add_argument("--full", action="store_true", help="compare SHA-256, not only lengths")
    parser.add_argument("--json", action="store_true", help="print what is wrong as JSON")


def run(options: argparse.Namespace) -> None:
    from brainldm.generation.status import verify
    from brainldm.runtime.format import format_count

    recorded, wrong = verify(options.out, options.full)
    if options.json:
        print(json.dumps({"recorded": recorded, "wrong": wrong}, indent=1))
    else:
        for name, what in list(wrong.items())[:_SHOWN]:
            print(f"{name}: {what}")
        print(f"{format_count(recorded, 'brain')} recorded, {len(wrong)} with something wrong")
    if wrong:
        raise BrainldmError(
            f"{options.out}: {format_count(len(wrong), 'file')} with something wrong. The `brainldm generate` that "
            "made it, with --verify, draws again what is missing or changed."
        )
