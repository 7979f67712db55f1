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
        "         brainldm plan --config paper_ldm --chip h200 --devices 8 --json\n"
        "         brainldm plan --config paper_ldm --chip h100 --programs generate --largest-batch\n"
        "         brainldm plan --ladder --chip h100",
    )
    parser.add_argument("--config", metavar="CONFIG", help="as for train, with --config.key=value ...")
    parser.add_argument("--topology", metavar="NAME", help="slice of TPUs, as v5e:2x4 or v5p:4x4x4 (needs libtpu)")
    parser.add_argument(
        "--chip", metavar="NAME", help="GPUs: h100, h200 or a100 (needs the CUDA plug-in of JAX, no GPU); or a TPU"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="how many chips (default 1); without --chip, N virtual devices"
    )
    parser.add_argument("--utilisation", type=float, default=0.4, metavar="SHARE", help="of the peak (default 0.4)")
    parser.add_argument("--programs", metavar="NAME,NAME", help="of train, sample, generate, encode, decode")
    parser.add_argument("--largest-batch", action="store_true", help="compile until the largest batch of each is found")
    parser.add_argument("--no-search", action="store_true", help="neither look for the largest batch nor for what fits")
    parser.add_argument(
        "--effort", choices=("quick", "full"), default="quick", help="of a TPU's compiler: full takes ten times longer"
    )
    parser.add_argument("--full", action="store_const", dest="effort", const="full", help="the same as --effort full")
    parser.add_argument(
        "--ladder", action="store_true", help="what runs the paper's networks at full size in 8 to 141 GB, and how long"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(takes_config=True)


def run(options: argparse.Namespace) -> None:
    import json

    from brainldm.planning.ladder import make_ladder
    from brainldm.planning.ladder_report import ladder_report
    from brainldm.planning.plan import make_plan
    from brainldm.planning.report import report
    from brainldm.planning.targets import find_target
    from brainldm.runtime.errors import UserError
    from brainldm.training.flags import load_config
    from brainldm.training.stages import stage_class

    if not 0 < options.utilisation <= 1:
        raise UserError(f"--utilisation {options.utilisation}: a share of the peak is wanted, above 0 and at most 1.")
    if options.ladder:
        if options.topology or options.devices or options.config or options.rest:
            raise UserError("--ladder is of the paper's configs on single GPUs; only --chip goes with it.")
        ladder = make_ladder(options.chip or "h100", options.utilisation)
        print(json.dumps(ladder, indent=1) if options.json else ladder_report(ladder))
        return
    if not options.config:
        raise UserError("--config is needed: a file FILE.py[:arg] or the name of a packaged config.")
    target, chip = find_target(options.topology, options.chip, options.devices)
    config = load_config(options.config, options.rest)
    known = stage_class(config).program_names
    offered = known + (("generate",) if "sample" in known else ())
    programs = tuple(options.programs.split(",")) if options.programs else known
    unknown = [name for name in programs if name not in offered]
    if unknown:
        raise UserError(f"--programs: the {config.stage} stage has no {unknown[0]!r}; it has {', '.join(offered)}.")
    if options.largest_batch and chip is None:
        raise UserError("--largest-batch wants to know the memory: name --chip or --topology.")
    plan = make_plan(
        config,
        target,
        chip,
        programs=programs,
        utilisation=options.utilisation,
        search=not options.no_search,
        largest=options.largest_batch,
        full=options.effort == "full",
    )
    print(json.dumps(plan, indent=1) if options.json else report(plan))
