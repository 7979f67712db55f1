"""The whole road on the embedded population: volumes, both training stages, export, generation, evaluation."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from brainldm.commands.evaluate import assess
from brainldm.generation.dataset import Settings, generate, read_conditions
from brainldm.population.population import write_population
from brainldm.runtime.console import Counter, duration, say
from brainldm.runtime.files import require_new_folder
from brainldm.train import run as run_training
from brainldm.training.config import config_file
from brainldm.training.export import export
from brainldm.weights.model_folder import load_model

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
    out = require_new_folder(out)
    began = time.monotonic()

    def step(number: int, what: str) -> None:
        say(f"\n[{number}/5] {what} ({duration(time.monotonic() - began)} so far)")

    step(1, "Making the embedded population (a stand-in: deformed templates, not people)")
    for name, people, seed in (("population", size.people, SEED), ("held_out", size.brains, SEED + 1)):
        with Counter(name, people) as progress:
            write_population(
                out / name,
                people,
                SPACING_MM,
                seed,
                workers=min(os.cpu_count() or 1, 8),
                progress=lambda done, total, progress=progress: progress(done),
            )
    data = f"--config.data.path={out / 'population'}"
    step(2, "Training the autoencoder")
    run_training(
        [
            "--config",
            f"{config_file('demo_autoencoder')}{size.variant}",
            "--workdir",
            str(out / "autoencoder"),
            data,
        ]
    )
    step(3, "Training the diffusion model on its latents")
    run_training(
        [
            "--config",
            f"{config_file('demo_ldm')}{size.variant}",
            "--workdir",
            str(out / "diffusion"),
            data,
            f"--config.autoencoder={out / 'autoencoder'}",
        ]
    )
    step(4, "Generating brains with the conditions of people it has not seen")
    export(out / "autoencoder", out / "diffusion", out / "model")
    model = load_model(out / "model")
    rows = read_conditions(out / "held_out", model.spec.covariates)
    sampling = model.spec.sampling
    generate(
        model,
        out / "synthetic",
        rows,
        Settings(
            seed=SEED,
            num_steps=sampling["num_steps"],
            eta=sampling["eta"],
            guidance=sampling["guidance"],
            batch_size=min(8, size.brains),
            extrapolate=True,
        ),
        note=STAND_IN,
    )
    step(5, "Evaluating")
    figures = assess(out / "synthetic", out / "held_out", out / "report", out / "model")
    say(f"\nDone in {duration(time.monotonic() - began)}.")
    return figures
