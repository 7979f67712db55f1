"""The command `prepare`: scans to the training grid."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable

from brainldm.commands.arguments import add_shard, shard_of


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "prepare",
        run,
        "bring T1w scans to the training grid in MNI152 space, as a BIDS dataset with a page to look at",
        "brainldm prepare ./archive ./prepared --table people.csv --grid paper-2mm\n"
        "         brainldm prepare ./archive ./prepared --shard 3/40   (on a cluster; each shard once)\n\n"
        "The same command again goes on where it was stopped, and does what changed.",
    )
    parser.add_argument("source", metavar="SOURCE", help="BIDS dataset, folder of images, text list, or table")
    parser.add_argument("out", metavar="OUT", help="folder to make, or to go on with")
    parser.add_argument("--table", metavar="FILE", help="table with the conditions, where SOURCE holds none")
    parser.add_argument("--pattern", metavar="GLOB", help="which files of a folder are scans, as '*_T1w.nii.gz'")
    parser.add_argument(
        "--grid",
        default="paper-1mm",
        metavar="NAME",
        help="paper-1mm (160x224x160, default), paper-2mm or paper-4mm (the same field of view)",
    )
    parser.add_argument("--registered", action="store_true", help="the scans lie in MNI152 space: only resample")
    parser.add_argument("--skull", default="auto", metavar="KIND", help="auto (looks, default), stripped or whole")
    parser.add_argument("--masks", metavar="FOLDER", help="brain masks named as the scans, with or without _mask")
    parser.add_argument(
        "--strip-command",
        metavar="COMMAND",
        help="skull stripper of yours, as 'mri_synthstrip -i {input} -o {output} -m {mask}'",
    )
    parser.add_argument("--bias-correction", action="store_true", help="N4, before everything else")
    parser.add_argument("--interpolation", default="linear", metavar="KIND", help="linear (default) or cubic")
    parser.add_argument("--min-similarity", type=float, metavar="R", help="correlation below which a fit is refused")
    parser.add_argument("--min-overlap", type=float, metavar="DICE", help="overlap below which a fit is refused")
    parser.add_argument(
        "--min-coverage", type=float, default=0.9, metavar="SHARE", help="of the brain in the field of view (0.9)"
    )
    parser.add_argument(
        "--max-excluded", type=float, default=0.2, metavar="SHARE", help="more excluded scans are an error (0.2)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    add_shard(parser, "scan")
    parser.add_argument("--retry", action="store_true", help="try the excluded scans again")
    parser.add_argument("--verify", action="store_true", help="compare every file's SHA-256 with its record")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(resumes=True, writes=("out",))


def run(options: argparse.Namespace) -> None:
    from brainldm.preparation.run import prepare
    from brainldm.preparation.scan import PrepareOptions
    from brainldm.runtime.console import Phases, log

    def progress(done: int, total: int, excluded: int) -> None:
        show("prepare", done, total, f"{excluded} excluded" if excluded else "")

    names = [field.name for field in dataclasses.fields(PrepareOptions)]
    with Phases() as show:
        summary = prepare(
            options.source,
            options.out,
            PrepareOptions(**{name: getattr(options, name) for name in names}),
            table=options.table,
            pattern=options.pattern,
            workers=options.workers,
            shard=shard_of(options),
            max_excluded=options.max_excluded,
            retry=options.retry,
            verify=options.verify,
            progress=progress,
        )
    for note in summary.notes:
        log(note)
    if options.json:
        print(json.dumps(dataclasses.asdict(summary), indent=1))
        return
    print(f"{summary.prepared} of {summary.total} scans prepared, {summary.excluded} excluded: {options.out}")
    if summary.complete:
        print(f"Look at it before training: {os.path.join(options.out, 'qc.html')}")
    else:
        print("Other shards have scans to do. The one that finishes last writes the tables and the page.")
