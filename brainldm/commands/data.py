"""Verbs about scans: population, prepare, check."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add these verbs; `verb(name, run, help, example)` makes the parser of one."""
    population = verb(
        "population",
        _population,
        "write the embedded population as a BIDS dataset",
        "brainldm population ./people --n 50 --spacing 4 --seed 1",
    )
    population.add_argument("out", metavar="OUT", help="folder to make")
    population.add_argument("--n", type=int, default=100, help="how many people (default 100)")
    population.add_argument("--spacing", type=float, default=4, metavar="MM", help="voxel size: 1, 2 or 4 (default 4)")
    population.add_argument("--seed", type=int, default=0)
    population.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")

    prepare = verb(
        "prepare",
        _prepare,
        "bring T1w scans to the training grid in MNI152 space, as a BIDS dataset with a page to look at",
        "brainldm prepare ./archive ./prepared --table people.csv --grid paper-2mm\n"
        "         brainldm prepare ./archive ./prepared --shard 3/40   (on a cluster; each shard once)\n\n"
        "The same command again goes on where it was stopped, and does what changed.",
    )
    prepare.add_argument("source", metavar="SOURCE", help="BIDS dataset, folder of images, text list, or table")
    prepare.add_argument("out", metavar="OUT", help="folder to make, or to go on with")
    prepare.add_argument("--table", metavar="FILE", help="table with the conditions, where SOURCE holds none")
    prepare.add_argument("--pattern", metavar="GLOB", help="which files of a folder are scans, as '*_T1w.nii.gz'")
    prepare.add_argument(
        "--grid",
        default="paper-1mm",
        metavar="NAME",
        help="paper-1mm (160x224x160, default), paper-2mm or paper-4mm (the same field of view)",
    )
    prepare.add_argument("--registered", action="store_true", help="the scans lie in MNI152 space: only resample")
    prepare.add_argument("--skull", default="auto", metavar="KIND", help="auto (looks, default), stripped or whole")
    prepare.add_argument("--masks", metavar="FOLDER", help="brain masks named as the scans, with or without _mask")
    prepare.add_argument(
        "--strip-command",
        metavar="COMMAND",
        help="skull stripper of yours, as 'mri_synthstrip -i {input} -o {output} -m {mask}'",
    )
    prepare.add_argument("--bias-correction", action="store_true", help="N4, before everything else")
    prepare.add_argument("--interpolation", default="linear", metavar="KIND", help="linear (default) or cubic")
    prepare.add_argument("--min-similarity", type=float, metavar="R", help="correlation below which a fit is refused")
    prepare.add_argument("--min-overlap", type=float, metavar="DICE", help="overlap below which a fit is refused")
    prepare.add_argument(
        "--min-coverage", type=float, default=0.9, metavar="SHARE", help="of the brain in the field of view (0.9)"
    )
    prepare.add_argument(
        "--max-excluded", type=float, default=0.2, metavar="SHARE", help="more excluded scans are an error (0.2)"
    )
    prepare.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    prepare.add_argument("--shard", default="1/1", metavar="i/n", help="do each n-th scan, from the i-th on")
    prepare.add_argument("--retry", action="store_true", help="try the excluded scans again")
    prepare.add_argument("--verify", action="store_true", help="compare every file's SHA-256 with its record")
    prepare.add_argument("--json", action="store_true", help="print the summary as JSON")

    check = verb(
        "check",
        _check,
        "take the fingerprint of a dataset, with the list of what would be rejected",
        "brainldm check ./prepared --config configs/paper_autoencoder.py --html check.html\n\n"
        "Rejected scans are part of the report: the exit code is 0 as long as one scan is usable, else 2.",
    )
    check.add_argument("data", metavar="DATA", help="BIDS or prepared dataset, folder of images, text list, or table")
    check.add_argument("--table", metavar="FILE", help="table with the conditions, where DATA holds none")
    check.add_argument("--pattern", metavar="GLOB", help="which files of a folder are scans")
    check.add_argument("--config", metavar="FILE.py", help="training config whose conditions and grid are wanted")
    check.add_argument("--sample", type=int, metavar="N", help="scans read in full (default: all, at most 200)")
    check.add_argument("--full", action="store_true", help="read every scan, compare files with their sidecars' hashes")
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all cores)")
    check.add_argument("--html", metavar="FILE", help="write the report as a page")
    check.add_argument("--json", action="store_true", help="print the fingerprint as JSON")


def _population(options: argparse.Namespace) -> None:
    from brainldm.population.population import write_population
    from brainldm.runtime.console import Counter

    with Counter("population", options.n) as progress:
        write_population(
            options.out,
            options.n,
            options.spacing,
            options.seed,
            options.workers,
            progress=lambda done, total: progress(done),
        )


def _prepare(options: argparse.Namespace) -> None:
    from brainldm.preparation.run import parse_shard, prepare
    from brainldm.preparation.scan import Options
    from brainldm.runtime.console import Counter, say

    counter: list[Counter] = []

    def progress(done: int, total: int, excluded: int) -> None:
        if not counter:
            counter.append(bars.enter_context(Counter("prepare", total, done)))
        counter[0](done, f"{excluded} excluded" if excluded else "")

    names = [field.name for field in dataclasses.fields(Options)]
    with contextlib.ExitStack() as bars:
        summary = prepare(
            options.source,
            options.out,
            Options(**{name: getattr(options, name) for name in names}),
            table=options.table,
            pattern=options.pattern,
            workers=options.workers,
            shard=parse_shard(options.shard),
            max_excluded=options.max_excluded,
            retry=options.retry,
            verify=options.verify,
            progress=progress,
        )
    for note in summary.notes:
        say(note)
    if options.json:
        print(json.dumps(dataclasses.asdict(summary), indent=1))
        return
    print(f"{summary.prepared} of {summary.total} scans prepared, {summary.excluded} excluded: {options.out}")
    if summary.complete:
        print(f"Look at it before training: {os.path.join(options.out, 'qc.html')}")
    else:
        print("Other shards have scans to do. The one that finishes last writes the tables and the page.")


def _check(options: argparse.Namespace) -> None:
    from brainldm.commands.check import check, require_usable
    from brainldm.fingerprint.inspection import Options
    from brainldm.fingerprint.text import lines

    found = check(
        options.data,
        Options(sample=options.sample, full=options.full, workers=options.workers),
        table=options.table,
        pattern=options.pattern,
        config=options.config,
        page=options.html,
    )
    print(json.dumps(found.as_dict(), indent=1) if options.json else "\n".join(lines(found.as_dict())))
    require_usable(found)
