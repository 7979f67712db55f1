"""The brainldm command: parse, call one function, print."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from brainldm import __version__
from brainldm.commands import check, convert, demo, evaluate, export, generate, plan, population, prepare, train
from brainldm.runtime.errors import BrainldmError

EXIT_CODES = """exit codes: 0 done; 1 a failure of ours; 2 a mistake in what was asked, with a message that says
what to do; 75 stopped from outside, and the same command goes on from there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        parser = _parser()
        options, options.rest = parser.parse_known_args(arguments)
        if options.rest and not getattr(options, "takes_config", False):
            parser.error(f"unrecognized arguments: {' '.join(options.rest)}")
        options.run(options)
        return 0
    except BrainldmError as error:
        print(f"brainldm: {error}", file=sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        print(f"brainldm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("brainldm: stopped by the keyboard.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainldm",
        description="Latent diffusion for 3D brain MRI: train it, and generate brains with it.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"brainldm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, run: Callable, help: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example: {example}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    for command in (demo, population, prepare, check, train, plan, export, convert, generate, evaluate):
        command.add(add_command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
