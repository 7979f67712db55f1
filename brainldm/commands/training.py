"""Verbs about models: train, plan, export, convert."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add these verbs; `verb(name, run, help, example)` makes the parser of one."""
    verb(
        "train",
        lambda options: None,
        "train the autoencoder or the diffusion model, as its config says",
        "brainldm train --config configs/demo_autoencoder.py --workdir runs/ae --config.data.path=./people\n"
        "flags: --config FILE.py[:arg] (or the name of a packaged config), --workdir DIR, --config.key=value ...,\n"
        "for one of several processes that train together --distributed, with --coordinator HOST:PORT\n"
        "--num-processes N --process-id I where no launcher (SLURM, Kubernetes, Cloud TPU VM) says which it is",
    )

    plan = verb(
        "plan",
        _plan,
        "compile a run for machines that are not here: memory, operations, collectives, time, and what to change",
        "brainldm plan --config configs/paper_autoencoder.py --topology v5e:2x4 --config.mesh.space=4\n"
        "         brainldm plan --config configs/paper_ldm.py --devices 8 --chip h200 --json",
    )
    plan.add_argument("--config", required=True, metavar="FILE[:arg]", help="as for train, with --config.key=value ...")
    target = plan.add_mutually_exclusive_group(required=True)
    target.add_argument("--topology", metavar="NAME", help="slice of TPUs, as v5e:2x4 or v5p:4x4x4 (needs libtpu)")
    target.add_argument("--devices", type=int, metavar="N", help="N virtual devices of this machine's CPU")
    plan.add_argument("--chip", metavar="NAME", help="with --devices: hold memory and time against this chip, as h200")
    plan.add_argument("--utilisation", type=float, default=0.4, metavar="SHARE", help="of the peak (default 0.4)")
    plan.add_argument("--programs", metavar="NAME,NAME", help="of train, sample, encode, decode (default all)")
    plan.add_argument("--no-search", action="store_true", help="neither look for the largest batch nor for what fits")
    plan.add_argument("--full", action="store_true", help="compile for TPUs with all optimisations: ten times slower")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(takes_config=True)

    export = verb(
        "export",
        _export,
        "make a model folder of the work dirs of both stages",
        "brainldm export runs/ae runs/ldm ./model",
    )
    export.add_argument("autoencoder", metavar="AE_WORKDIR")
    export.add_argument("diffusion", metavar="LDM_WORKDIR")
    export.add_argument("model", metavar="MODEL", help="folder to make")

    convert = verb(
        "convert",
        _convert,
        "make a model folder of MONAI state dicts, or the reverse",
        "brainldm convert autoencoder.pth,diffusion_model.pth ./model\n         brainldm convert ./model ./monai",
    )
    convert.add_argument("source", metavar="FROM", help="AUTOENCODER,UNET state dicts (.pt, .pth), or a model folder")
    convert.add_argument("target", metavar="TO", help="folder to make")
    convert.add_argument("--spacing", type=float, default=1, metavar="MM", help="voxel size of its images (default 1)")
    convert.add_argument(
        "--orientation",
        default="LAS",
        choices=("LAS", "RAS"),
        help="of the volumes that it was trained on (default LAS, as the released brain LDM)",
    )
    convert.add_argument("--head-channels", metavar="N,N,N", help="channels of an attention head, per level")
    convert.add_argument("--autoencoder-norm-groups", type=int, default=32, metavar="N", help="default 32")
    convert.add_argument("--unet-norm-groups", type=int, default=32, metavar="N", help="default 32")
    convert.add_argument("--prediction", default="epsilon", choices=("epsilon", "velocity", "x0"))
    convert.add_argument("--latent-scale", type=float, default=1.0, help="factor on the latents (default 1)")


def _plan(options: argparse.Namespace) -> None:
    import json

    from brainldm.planning.chips import find_chip, parse_topology
    from brainldm.planning.plan import PROGRAMS, make_plan
    from brainldm.planning.report import report
    from brainldm.runtime.errors import UserError
    from brainldm.train import parse

    if not 0 < options.utilisation <= 1:
        raise UserError(f"--utilisation {options.utilisation}: a share of the peak is wanted, above 0 and at most 1.")
    if options.devices is not None and not 1 <= options.devices <= 4096:
        raise UserError(f"--devices {options.devices}: a number from 1 to 4096 is wanted.")
    if options.topology and options.chip:
        raise UserError("--chip goes with --devices: a topology names its chip.")
    target = parse_topology(options.topology) if options.topology else options.devices
    chip = target.chip if options.topology else find_chip(options.chip) if options.chip else None
    config, *_ = parse(["--config", options.config, "--workdir=plan", *options.rest])
    known = PROGRAMS[config.stage]
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


def _export(options: argparse.Namespace) -> None:
    from brainldm.training.export import export

    print(f"{options.model} {export(options.autoencoder, options.diffusion, options.model)}")


def _convert(options: argparse.Namespace) -> None:
    from brainldm.weights.convert import Unstated, from_monai, parse_head_channels, to_monai

    autoencoder, comma, unet = options.source.partition(",")
    if not comma:
        for path in to_monai(options.source, options.target):
            print(path)
        return
    digest = from_monai(
        autoencoder,
        unet,
        options.target,
        Unstated(
            spacing_mm=options.spacing,
            orientation=options.orientation,
            prediction=options.prediction,
            latent_scale=options.latent_scale,
            num_head_channels=parse_head_channels(options.head_channels),
            autoencoder_norm_groups=options.autoencoder_norm_groups,
            unet_norm_groups=options.unet_norm_groups,
        ),
    )
    print(f"{options.target} {digest}")
