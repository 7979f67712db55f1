"""The command `export`: a model folder of the work dirs of both stages, or of one that is a model by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_file


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
    parser.add_argument(
        "--half", action="store_true", help="store the parameters in float16, half as large (of both stages)"
    )
    parser.add_argument(
        "--notes",
        metavar="FILE.md",
        help="end of the model card: licence of the training data, figures, limits (of both stages)",
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
    if options.diffusion is None and (options.half or options.notes):
        raise UserError("--half and --notes are of a model of both stages. Leave them out.")
    if options.diffusion is None:
        print(f"{options.model} {export_alone(options.workdir, options.model)}")
    else:
        notes = _text(options.notes) if options.notes else ""
        made = export(options.workdir, options.diffusion, options.model, options.ema_length, options.half, notes)
        print(f"{options.model} {made}")


def _text(path: str) -> str:
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save it as such.") from error
