"""The command `evaluate`: a generated dataset held against a real one, as an HTML report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from brainldm.commands.arguments import positive, seed


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "evaluate",
        run,
        "compare a generated dataset with a real one, as an HTML report",
        "brainldm evaluate ./synthetic ./people ./report --model ./model",
    )
    parser.add_argument("synthetic", metavar="SYNTHETIC", help="dataset that `generate` wrote")
    parser.add_argument("real", metavar="REAL", help="BIDS dataset on the same grid")
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--model", metavar="MODEL", help="adds its reconstructions and a sweep of one condition")
    parser.add_argument("--med3d", metavar="FILE", help="Med3D checkpoint whose features FID is taken on")
    parser.add_argument(
        "--brain-age", metavar="MODEL", help="folder of a brain-age network, which tells ages of both datasets"
    )
    parser.add_argument(
        "--pairs", type=positive, default=1000, metavar="N", help="pairs compared by SSIM (default: 1000)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of pairs and intervals (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(makes="out", writes=("out",))


def run(options: argparse.Namespace) -> None:
    from brainldm.evaluation.report import evaluate, summary_lines
    from brainldm.generation.illustrations import illustrate
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.runtime.compiled_programs import keep_programs
    from brainldm.runtime.console import Phases

    if options.model:
        refuse_silent_cpu()
    keep_programs()
    illustrations = illustrate(options.model, options.real) if options.model else {}
    with Phases() as show:
        figures = evaluate(
            options.synthetic,
            options.real,
            options.out,
            max_pairs=options.pairs,
            med3d=options.med3d,
            brain_age_model=options.brain_age,
            seed=options.seed,
            progress=lambda done, total, what: show("evaluate", done, total, what),
            **illustrations,
        )
    print(json.dumps(figures, indent=1) if options.json else "\n".join(summary_lines(figures)))
