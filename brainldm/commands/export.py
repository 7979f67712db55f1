"""The command `export`: a model folder of the work dirs of both stages, or of one that is a model by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from brainldm.runtime.errors import UserError


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "export",
        run,
        "make a model folder of the work dirs of both stages, or of one that is a model by itself",
        "brainldm export runs/ae runs/ldm ./model\n         brainldm export runs/lsgan ./lsgan",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="of the autoencoder, a baseline or the brain-age network")
    parser.add_argument("diffusion", metavar="LDM_WORKDIR", nargs="?", help="after that of the autoencoder")
    parser.add_argument("model", metavar="MODEL", help="folder to make")
    parser.add_argument(
        "--ema-length",
        type=float,
        metavar="LENGTH",
        help="average of the denoising network over this share of its training, 0.01 to 0.25, of a run with "
        "config.optimizer.power_ema (default: the run's own moving average)",
    )
    parser.set_defaults(makes="model", writes=("model",))


def run(options: argparse.Namespace) -> None:
    from brainldm.release.export import export
    from brainldm.release.export_alone import export_alone

    if options.diffusion is None and options.ema_length is not None:
        raise UserError(
            "--ema-length is of the average of a denoising network, and the work dir of none is given. Name it after "
            "that of the autoencoder, or leave the length out."
        )
    if options.diffusion is None:
        print(f"{options.model} {export_alone(options.workdir, options.model)}")
    else:
        print(f"{options.model} {export(options.workdir, options.diffusion, options.model, options.ema_length)}")
