"""The command `population`: the embedded population as a BIDS dataset."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from brainldm.commands.arguments import positive, seed


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "population",
        run,
        "write the embedded population as a BIDS dataset",
        "brainldm population ./people --n 50 --spacing 4 --seed 1",
    )
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--n", type=positive, default=100, help="how many people (default 100)")
    parser.add_argument("--spacing", type=float, default=4, metavar="MM", help="voxel size: 1, 2 or 4 (default 4)")
    parser.add_argument("--seed", type=seed, default=0, help="which population (default 0)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.set_defaults(makes="out")


def run(options: argparse.Namespace) -> None:
    from brainldm.population.population import write_population
    from brainldm.runtime.console import Progress

    with Progress("population", options.n) as progress:
        write_population(
            options.out,
            options.n,
            options.spacing,
            options.seed,
            options.workers,
            progress=lambda done, total: progress(done),
        )
