"""The command `demo`: the embedded population from its making to a report, both training stages between."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainldm.runtime.console import Progress, log
from brainldm.runtime.format import format_duration
from brainldm.runtime.lock import new_folder

SPACING_MM = 4
SEED = 2022

STAND_IN = (
    "The model was trained on the embedded population of brainldm: deformed copies of the MNI152 template, a stand-in "
    "for trying things out, not scans of people."
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How many people to train on, how many brains to draw, and the argument of the demo's config files."""

    people: int
    brains: int
    variant: str = ""


FULL = Size(people=200, brains=32)
TINY = Size(people=8, brains=4, variant=":tiny")


def demo(out: str | Path, size: Size = FULL) -> dict[str, Any]:
    """Run the demo in the new folder `out` and return the figures of its report.

    Brains are drawn with the conditions of people that no network has seen. Raises UserError when `out` holds
    something.
    """
    with new_folder(out) as out:
        return _demo(out, size)


def _demo(out: Path, size: Size) -> dict[str, Any]:
    from brainldm.evaluation.report import evaluate
    from brainldm.generation.conditions import read_conditions
    from brainldm.generation.dataset import Settings, generate
    from brainldm.generation.illustrations import illustrate
    from brainldm.parallel import devices
    from brainldm.population.population import write_population
    from brainldm.release.export import export
    from brainldm.training import loop
    from brainldm.training.flags import load_config
    from brainldm.weights.model_folder import load_model

    began = time.monotonic()

    def step(number: int, what: str) -> None:
        log(f"\n[{number}/5] {what} ({format_duration(time.monotonic() - began)} so far)")

    step(1, "Making the embedded population (a stand-in: deformed templates, not people)")
    for name, people, seed in (("population", size.people, SEED), ("held_out", size.brains, SEED + 1)):
        with Progress(name, people) as progress:
            write_population(
                out / name,
                people,
                SPACING_MM,
                seed,
                workers=min(os.cpu_count() or 1, 8),
                progress=lambda done, total, progress=progress: progress(done),
            )
    devices.refuse_silent_cpu()
    data = {"data.path": str(out / "population")}
    step(2, "Training the autoencoder")
    loop.train(load_config(f"demo_autoencoder{size.variant}", data), out / "autoencoder")
    step(3, "Training the diffusion model on its latents")
    data["autoencoder"] = str(out / "autoencoder")
    loop.train(load_config(f"demo_ldm{size.variant}", data), out / "diffusion")
    step(4, "Generating brains with the conditions of people it has not seen")
    export(out / "autoencoder", out / "diffusion", out / "model")
    model = load_model(out / "model")
    rows = read_conditions(out / "held_out", model.spec.covariates)
    generate(
        model,
        out / "synthetic",
        rows,
        Settings(
            sampling=model.spec.sampling,
            seed=SEED,
            batch_size=min(8, size.brains),
            extrapolate=True,
        ),
        note=STAND_IN,
    )
    step(5, "Evaluating")
    figures = evaluate(
        out / "synthetic", out / "held_out", out / "report", **illustrate(out / "model", out / "held_out")
    )
    log(f"\nDone in {format_duration(time.monotonic() - began)}.")
    return figures


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "demo", run, "everything end to end, offline, on the embedded population", "brainldm demo ./demo"
    )
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything, to check an installation")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(makes="out", writes=("out",))


def run(options: argparse.Namespace) -> None:
    from brainldm.runtime.compiled_programs import keep_programs

    keep_programs()
    figures = demo(options.out, TINY if options.tiny else FULL)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    from brainldm.evaluation.report import headline_lines

    print("\n".join([*headline_lines(figures), f"Report: {os.path.join(options.out, 'report', 'report.html')}"]))
