"""The command `status`: how far a generated dataset is."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command("status", run, "say how far a generated dataset is, over all shards", "brainldm status ./many")
    parser.add_argument("out", metavar="OUT", help="folder that `generate` fills")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> None:
    from brainldm.generation.status import read_status
    from brainldm.runtime.format import format_count, format_duration

    status = read_status(options.out)
    if options.json:
        print(json.dumps(dataclasses.asdict(status), indent=1))
        return
    print(f"{status.done} of {format_count(status.total, 'brain')} done, {status.missing} missing, {status.bad} bad")
    print(f"{status.shards_done} of {format_count(status.shards, 'shard')} done")
    if status.finished:
        print("The dataset is finished.")
    elif status.done == status.total:
        print(f"All are drawn. Make one dataset of them: brainldm finalize {options.out}")
    elif status.rate:
        print(f"{status.rate:.3g} a second lately, {format_duration(status.seconds_left or 0)} left at that rate")
