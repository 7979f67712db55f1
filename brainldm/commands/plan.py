"""The command `plan`: what a run needs on a machine that is not here."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "plan",
        run,
        "compile a run for machines that are not here: memory, operations, collectives, time, and what to change",
        "brainldm plan --config paper_autoencoder --topology v5e:2x4 --config.mesh.space=4\n"
        "         brainldm plan --config paper_ldm --devices 8 --chip h200 --json",
    )
    parser.add_argument("--config", required=True, metavar="CONFIG", help="as for train, with --config.key=value ...")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--topology", metavar="NAME", help="slice of TPUs, as v5e:2x4 or v5p:4x4x4 (needs libtpu)")
    target.add_argument("--devices", type=int, metavar="N", help="N virtual devices of this machine's CPU")
    parser.add_argument(
        "--chip", metavar="NAME", help="with --devices: hold memory and time against this chip, as h200"
    )
    parser.add_argument("--utilisation", type=float, default=0.4, metavar="SHARE", help="of the peak (default 0.4)")
    parser.add_argument("--programs", metavar="NAME,NAME", help="of train, sample, encode, decode (default all)")
    parser.add_argument("--no-search", action="store_true", help="neither look for the largest batch nor for what fits")
    parser.add_argument("--full", action="store_true", help="compile for TPUs with all optimisations: ten times slower")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(takes_config=True)


def run(options: argparse.Namespace) -> None:
    import json

    from brainldm.planning.chips import find_chip, parse_topology
    from brainldm.planning.plan import make_plan
    from brainldm.planning.report import report
    from brainldm.runtime.errors import UserError
    from brainldm.training.flags import load_config
    from brainldm.training.stages import stage_class

    if not 0 < options.utilisation <= 1:
        raise UserError(f"--utilisation {options.utilisation}: a share of the peak is wanted, above 0 and at most 1.")
    if options.devices is not None and not 1 <= options.devices <= 4096:
        raise UserError(f"--devices {options.devices}: a number from 1 to 4096 is wanted.")
    if options.topology and options.chip:
        raise UserError("--chip goes with --devices: a topology names its chip.")
    target = parse_topology(options.topology) if options.topology else options.devices
    chip = target.chip if options.topology else find_chip(options.chip) if options.chip else None
    config = load_config(options.config, options.rest)
    known = stage_class(config).program_names
    programs = tuple(options.programs.split(",")) if options.programs else known
    unknown = [name for name in programs if name not in known]
    if unknown:
        raise UserError(f"--programs: the {config.stage} stage has no {unknown[0]!r}; it has {', '.join(known)}.")
    plan = make_plan(
        config,
        target,
        chip,
        programs=programs,
        utilisation=options.utilisation,
        search=not options.no_search,
        full=options.full,
    )
    print(json.dumps(plan, indent=1) if options.json else report(plan))
