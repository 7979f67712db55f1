"""The brainldm command: parse, call one function, print."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from brainldm import __version__
from brainldm.commands import (
    check,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    finalize,
    generate,
    measure,
    plan,
    population,
    prepare,
    regenerate,
    status,
    train,
    verify,
)
from brainldm.runtime.console import log, make_streams_safe
from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.failures import told
from brainldm.runtime.files import require_writable, require_writable_file
from brainldm.runtime.signals import stop_at_once

_COMMANDS = (
    doctor,
    demo,
    population,
    prepare,
    check,
    train,
    plan,
    export,
    convert,
    generate,
    status,
    verify,
    finalize,
    regenerate,
    measure,
    evaluate,
)
"""In the order in which they are used."""

EXIT_CODES = """exit codes: 0 done; 1 a failure of ours; 2 a mistake in what was asked, with a message that says
what to do; 75 stopped from outside (SIGTERM, Ctrl-C). train, prepare, generate and measure then go on with the
same command; the others begin anew, and say what they have left."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    return guarded(_parser, list(sys.argv[1:] if arguments is None else arguments))


def guarded(make_parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str]) -> int:
    """Parse, run what the parser sets as `run`, and return the exit code: every end in a sentence of its own."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    options = argparse.Namespace(command="")
    make_streams_safe()
    try:
        try:
            with stop_at_once():
                _check_letters(arguments)
                parser = make_parser()
                options, options.rest = parser.parse_known_args(arguments)
                if options.rest and not getattr(options, "takes_config", False):
                    parser.error(f"unrecognized arguments: {' '.join(options.rest)}")
                _check_outputs(options)
                options.run(options)
        finally:
            sys.stdout.flush()  # here, where a full disk ends in a sentence
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _end(_stopped(options), Stopped.exit_code)
    except Exception as error:
        if (said := told(error)) is None:
            raise
        return _end(*said)


def _check_letters(arguments: Sequence[str]) -> None:
    """Raise UserError for bytes that the encoding of the shell does not have: no file of ours could name them."""
    for text in arguments:
        if any("\udc80" <= letter <= "\udcff" for letter in text):
            raise UserError(
                f"{text}: has letters that the encoding of this shell ({sys.getfilesystemencoding()}) does not have. "
                "Set LC_ALL=C.UTF-8 and PYTHONUTF8=1 and give the command again, or give another name."
            )


def _check_outputs(options: argparse.Namespace) -> None:
    """Before any work: can what the command is going to write be written?"""
    for names, require in (("writes", require_writable), ("writes_files", require_writable_file)):
        for name in getattr(options, names, ()):
            if (path := getattr(options, name, None)) is not None:
                require(path)


def _end(message: str, code: int) -> int:
    log(f"brainldm: {message}")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to say is lost, also at exit
    return code


def _stopped(options: argparse.Namespace) -> str:
    """What a run that was stopped outside of its own care for signals leaves behind."""
    if getattr(options, "resumes", False):
        return "stopped from outside; what is on disk is whole. The same command goes on from there."
    if makes := getattr(options, "makes", None):
        folder = getattr(options, makes)
        return f"stopped from outside. `{options.command}` does not go on from here: delete {folder} and give it again."
    return "stopped from outside; nothing was written."


class Parser(argparse.ArgumentParser):
    """A parser whose help does not vanish in silence when it cannot be written."""

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file or sys.stdout)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
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

    for command in _COMMANDS:
        command.add(add_command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
