"""The command `regenerate`: one brain of a generated dataset once more."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from brainldm.runtime.errors import BrainldmError


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "regenerate",
        run,
        "draw one brain of a generated dataset again and compare it",
        "brainldm regenerate ./model ./many sub-0042 --to again.nii.gz\n\n"
        "The same bytes come on the same kind of device with the same versions; elsewhere last digits may differ.\n"
        "Exit code 1 when more than these do.",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder that drew it")
    parser.add_argument("out", metavar="OUT", help="the dataset")
    parser.add_argument("subject", metavar="ID", help="as sub-0042")
    parser.add_argument("--to", metavar="FILE.nii.gz", help="write it here")
    parser.set_defaults(writes_files=("to",))


def run(options: argparse.Namespace) -> None:
    from brainldm.generation.regenerate import TOLERANCE, regenerate
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.runtime.compiled_programs import keep_programs
    from brainldm.weights.gan_folder import load_generator

    refuse_silent_cpu()
    keep_programs()
    again = regenerate(load_generator(options.model), options.out, options.subject, options.to)
    if again.same:
        print(f"{options.subject}: the same bytes")
        return
    if again.units is None:
        raise BrainldmError(
            f"{options.subject}: not the recorded bytes, and the file that is there cannot be read to say by how much. "
            "Another kind of device or version may have drawn it, or its record is damaged."
        )
    if again.units > TOLERANCE:
        raise BrainldmError(
            f"{options.subject}: differs by up to {again.units} stored units (of 32767), where another device or "
            f"version explains {TOLERANCE}. The file was changed since, or its record."
        )
    print(f"{options.subject}: the same within {again.units} stored units of 32767 (another device or version drew it)")
