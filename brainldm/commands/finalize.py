"""The command `finalize`: one dataset of finished shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "finalize",
        run,
        "check what the shards of `generate` drew, and make one BIDS dataset of it",
        "brainldm finalize ./many\n\n"
        "Exit code 1 when a shard is not done, an id repeats, a brain is missing or a file is not as recorded.",
    )
    parser.add_argument("out", metavar="OUT", help="folder that `generate` filled")
    parser.add_argument("--quick", action="store_true", help="compare the lengths of files, not their SHA-256")


def run(options: argparse.Namespace) -> None:
    from brainldm.generation.finalize import finalize
    from brainldm.generation.job import read_job
    from brainldm.runtime.format import format_count
    from brainldm.runtime.lock import locked

    read_job(options.out)  # before anything is made there
    with locked(options.out, keep=False):
        count = finalize(options.out, full=not options.quick)
    print(f"{format_count(count, 'brain')}: {options.out}")
