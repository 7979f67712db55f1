"""The command `measure`: volumes, and label maps, of every image of a dataset."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable

from brainldm.commands.arguments import add_shard, shard_of


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "measure",
        run,
        "measure the ventricles, the brain and, with weights, every structure of a dataset's images, in mL",
        "brainldm measure ./prepared ./volumes\n"
        "         brainldm measure ./prepared ./volumes --shard 3/40   (on a cluster; each shard once)\n"
        "         brainldm measure ./prepared ./volumes --weights synthseg_2.0.h5 --labels\n\n"
        "The same command again goes on where it was stopped, and measures what changed.",
    )
    parser.add_argument("data", metavar="DATA", help="prepared or generated dataset")
    parser.add_argument(
        "out", metavar="OUT", nargs="?", help="folder to make, or to go on with (DATA/derivatives/brainldm-measure)"
    )
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="weight-free (default without weights), synthseg or meshnet (default: whichever the weights are of)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="SynthSeg's .h5 or .pth, or the model.json of a MeshNet of brainchop"
    )
    parser.add_argument("--labels", action="store_true", help="write a label map (dseg) of each image")
    parser.add_argument(
        "--fill-covariates",
        action="store_true",
        help="fill in the ventricles_ml and brain_ml that DATA's participants.tsv lacks, in the copy in OUT",
    )
    parser.add_argument("--pattern", metavar="GLOB", help="which images are measured, as '*_T1w.nii.gz'")
    add_shard(parser, "image")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(resumes=True, writes=("out",))


def run(options: argparse.Namespace) -> None:
    from brainldm.evaluation.measures.backends import WEIGHT_FREE, open_backend
    from brainldm.evaluation.measures.run import default_folder, measure_dataset
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.runtime.console import Phases, log
    from brainldm.runtime.format import format_count

    backend = open_backend(options.backend, options.weights)
    if backend.name != WEIGHT_FREE:
        refuse_silent_cpu()
        log(f"backend {backend.name}, weights {backend.sha256}")
    out = options.out or str(default_folder(options.data))
    with Phases() as show:
        summary = measure_dataset(
            options.data,
            out,
            backend,
            labels=options.labels,
            fill=options.fill_covariates,
            pattern=options.pattern,
            shard=shard_of(options),
            progress=lambda done, total: show("measure", done, total, warm_up=2),
        )
    for note in summary.notes:
        log(note)
    if options.json:
        print(json.dumps({**dataclasses.asdict(summary), "out": out}, indent=1))
        return
    left = f", {summary.excluded} left out" if summary.excluded else ""
    weights = f" (weights {summary.weights_sha256[:12]})" if summary.weights_sha256 else ""
    print(
        f"{summary.measured} of {format_count(summary.total, 'image')} measured by {summary.backend}{weights}{left}: "
        f"{out}{'/volumes.tsv' if summary.complete else ''}"
    )
    if not summary.complete:
        print("Other shards have images to do. The one that finishes last writes the tables.")
