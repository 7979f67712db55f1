"""The command `export`: a model folder of the work dirs of both stages."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "export",
        run,
        "make a model folder of the work dirs of both stages",
        "brainldm export runs/ae runs/ldm ./model",
    )
    parser.add_argument("autoencoder", metavar="AE_WORKDIR")
    parser.add_argument("diffusion", metavar="LDM_WORKDIR")
    parser.add_argument("model", metavar="MODEL", help="folder to make")
    parser.set_defaults(makes="model")


def run(options: argparse.Namespace) -> None:
    from brainldm.training.export import export

    print(f"{options.model} {export(options.autoencoder, options.diffusion, options.model)}")
