"""The command `convert`: model folders of MONAI state dicts, and the reverse."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "convert",
        run,
        "make a model folder of MONAI state dicts, or the reverse",
        "brainldm convert autoencoder.pth,diffusion_model.pth ./model\n         brainldm convert ./model ./monai",
    )
    parser.add_argument("source", metavar="FROM", help="AUTOENCODER,UNET state dicts (.pt, .pth), or a model folder")
    parser.add_argument("target", metavar="TO", help="folder to make")
    parser.add_argument("--spacing", type=float, default=1, metavar="MM", help="voxel size of its images (default 1)")
    parser.add_argument(
        "--orientation",
        default="LAS",
        choices=("LAS", "RAS"),
        help="of the volumes that it was trained on (default LAS, as the released brain LDM)",
    )
    parser.add_argument("--head-channels", metavar="N,N,N", help="channels of an attention head, per level")
    parser.add_argument("--autoencoder-norm-groups", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--unet-norm-groups", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--prediction", default="epsilon", choices=("epsilon", "velocity", "x0"))
    parser.add_argument("--latent-scale", type=float, default=1.0, help="factor on the latents (default 1)")
    parser.set_defaults(makes="target", writes=("target",))


def run(options: argparse.Namespace) -> None:
    from brainldm.weights.convert import ConversionOptions, from_monai, parse_head_channels, to_monai

    autoencoder, comma, unet = options.source.partition(",")
    if not comma:
        for path in to_monai(options.source, options.target):
            print(path)
        return
    digest = from_monai(
        autoencoder,
        unet,
        options.target,
        ConversionOptions(
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
