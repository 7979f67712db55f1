"""Verbs about models: train, export, convert."""

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
