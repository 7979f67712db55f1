"""The command `population`: the embedded population, or one made from label maps, as a BIDS dataset."""

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
        "write the embedded population, or one made from label maps, as a BIDS dataset",
        "brainldm population ./people --n 50 --spacing 4 --seed 1\n"
        "         brainldm population ./people --n 500 --labels ./label_maps   (an anatomy of its own for each)",
    )
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--n", type=positive, default=100, help="how many people (default 100)")
    parser.add_argument(
        "--spacing",
        "--spacing-mm",
        dest="spacing",
        type=float,
        default=4,
        metavar="MM",
        help="voxel size: 1, 2 or 4 (default 4)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="which population (default 0)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument(
        "--labels", metavar="DIR", help="label maps of brains, numbered as FreeSurfer or SynthSeg do, to make people of"
    )
    parser.add_argument("--registered", action="store_true", help="the label maps lie in MNI152 space already")
    parser.set_defaults(makes="out", writes=("out",))


def run(options: argparse.Namespace) -> None:
    from brainldm.runtime.console import Phases, Progress
    from brainldm.runtime.errors import UserError

    arguments = (options.n, options.spacing, options.seed, options.workers)
    if options.labels is not None:
        from brainldm.population.label_population import write_label_population

        with Phases() as phases:
            write_label_population(options.out, options.labels, *arguments, options.registered, phases)
        return
    if options.registered:
        raise UserError("--registered says where label maps lie, and there are none. Give them with --labels DIR.")
    from brainldm.population.population import write_population

    with Progress("population", options.n) as progress:
        write_population(options.out, *arguments, progress=lambda done, total: progress(done))
