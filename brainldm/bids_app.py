"""The door that BIDS Apps have: brainldm-bids BIDS OUT {participant,group} [--participant-label LABEL ...].

`prepare` by default: participants one by one or many at once, then the group for the tables. With --model, BIDS is a
table of requests (a folder with participants.tsv, or the table): a brain for each row, then the group for the dataset.
A participant writes its own files alone, so any number may run at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from brainldm import __version__
from brainldm.cli import Parser, guarded
from brainldm.commands.arguments import positive, seed
from brainldm.runtime.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one level and return the exit code, as that of `brainldm`."""
    return guarded(_parser, list(sys.argv[1:] if arguments is None else arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="brainldm-bids", description=__doc__.split("\n\n")[0])
    parser.add_argument("bids_dir", metavar="BIDS", help="dataset of scans; with --model, of requests")
    parser.add_argument("output_dir", metavar="OUT", help="folder of the derivatives")
    parser.add_argument("analysis_level", choices=("participant", "group"), metavar="{participant,group}")
    parser.add_argument(
        "--participant-label", "--participant_label", nargs="+", metavar="LABEL", help="with or without sub-"
    )
    parser.add_argument("--skip-bids-validation", action="store_true", help="accepted; nothing is validated beforehand")
    parser.add_argument("--n-cpus", "--n_cpus", type=positive, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--grid", default="paper-1mm", help="of prepared scans: paper-1mm, paper-2mm or paper-4mm")
    parser.add_argument("--registered", action="store_true", help="the scans lie in MNI152 space: only resample")
    parser.add_argument("--skull", default="auto", metavar="KIND", help="auto (looks, default), stripped or whole")
    parser.add_argument("--model", metavar="MODEL", help="model folder: draw a brain for each row of BIDS")
    parser.add_argument("--seed", type=seed, default=0, help="of the brains that are drawn")
    parser.add_argument("--extrapolate", action="store_true", help="allow conditions that the model never saw")
    parser.add_argument("--version", action="version", version=f"brainldm {__version__}")
    parser.set_defaults(run=_run, resumes=True, writes=("output_dir",))
    return parser


def _run(options: argparse.Namespace) -> None:
    labels = options.participant_label
    wanted = None if labels is None else [f"sub-{label.removeprefix('sub-')}" for label in labels]
    if options.analysis_level == "group" and wanted is not None:
        raise UserError("--participant-label: the group is all participants. Leave the labels out.")
    (_draw if options.model else _prepare)(options, wanted)


def _prepare(options: argparse.Namespace, wanted: list[str] | None) -> None:
    from brainldm.datasets.find import find_scans
    from brainldm.preparation.run import prepare
    from brainldm.preparation.scan import PrepareOptions

    choices = PrepareOptions(grid=options.grid, registered=options.registered, skull=options.skull)
    group = options.analysis_level == "group"
    if not group and wanted is None:
        wanted = sorted({scan.participant_id for scan in find_scans(options.bids_dir).scans})
    summary = prepare(
        options.bids_dir, options.output_dir, choices, workers=options.n_cpus, participants=None if group else wanted
    )
    print(f"{summary.prepared} of {summary.total} scans prepared, {summary.excluded} excluded: {options.output_dir}")


def _draw(options: argparse.Namespace, wanted: list[str] | None) -> None:
    from brainldm.generation.conditions import read_conditions, table_ids
    from brainldm.generation.dataset import Settings, generate_shards
    from brainldm.generation.finalize import finalize
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.runtime.compiled_programs import keep_programs
    from brainldm.runtime.lock import locked
    from brainldm.weights.model_folder import load_model

    if options.analysis_level == "group":
        with locked(options.output_dir, keep=False):
            print(f"{finalize(options.output_dir)} brains: {options.output_dir}")
        return
    refuse_silent_cpu()
    keep_programs()
    model = load_model(options.model)
    ids = table_ids(options.bids_dir)
    if ids is None:
        raise UserError(f"{options.bids_dir}: each row needs a participant_id of its own, sub- and letters or digits.")
    wanted = ids if wanted is None else wanted
    if strange := sorted(set(wanted) - set(ids)):
        raise UserError(f"{options.bids_dir}: has no row {', '.join(strange[:3])}.")
    rows = read_conditions(options.bids_dir, model.spec.covariates, model.spec.takes_subsets)
    # A share for each row: which rows one run gets, and in which order runs come, changes no byte.
    settings = Settings(
        sampling=model.spec.sampling, seed=options.seed, batch_size=1, extrapolate=options.extrapolate, chunk_size=1
    )
    place = {name: number for number, name in enumerate(ids, start=1)}
    shards = [(place[name], len(ids)) for name in wanted]
    generate_shards(model, options.output_dir, rows, settings, shards, ids=ids)


if __name__ == "__main__":
    sys.exit(main())
