"""The brainldm command: parse, call one function, print."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence

from brainldm import __version__
from brainldm.errors import BrainldmError, UserError

EXIT_CODES = """exit codes: 0 done; 1 a failure of ours; 2 a mistake in what was asked, with a message that says
what to do; 75 stopped from outside, and the same command goes on from there."""

# Flags of `generate` that name one condition each, with the column they fill.
_CONDITION_FLAGS = {"age": "age", "sex": "sex", "ventricles-ml": "ventricles_ml", "brain-ml": "brain_ml"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        # Checked before argparse, because the rest of its flags belong to absl.
        if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
            _train(arguments[1:])
            return 0
        options = _parser().parse_args(arguments)
        options.run(options)
        return 0
    except BrainldmError as error:
        print(f"brainldm: {error}", file=sys.stderr)
        return error.exit_code
    except FloatingPointError as error:
        print(f"brainldm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("brainldm: stopped by the keyboard.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainldm",
        description="Latent diffusion for 3D brain MRI: train it, and generate brains with it.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"brainldm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable, help: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example: {example}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    demo = verb("demo", _demo, "the whole road, offline, on the embedded population", "brainldm demo ./demo")
    demo.add_argument("out", metavar="OUT", help="folder to make")
    demo.add_argument("--tiny", action="store_true", help="a few steps of everything, to check an installation")
    demo.add_argument("--json", action="store_true", help="print the figures as JSON")

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

    verb(
        "train",
        lambda options: None,
        "train the autoencoder or the diffusion model, as its config says",
        "brainldm train --config configs/demo_autoencoder.py --workdir runs/ae --config.data.path=./people\n"
        "flags: --config FILE.py[:arg] (or the name of a packaged config), --workdir DIR, --config.key=value ...",
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

    generate = verb(
        "generate",
        _generate,
        "draw brains with a model and write them as a BIDS dataset",
        "brainldm generate ./model ./synthetic --n 8 --age 60:75 --sex F --ventricles-ml 40",
    )
    generate.add_argument("model", metavar="MODEL", help="model folder")
    generate.add_argument("out", metavar="OUT", help="folder to make")
    generate.add_argument("--n", type=int, help="how many brains (default 1; with --participants, its rows)")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--participants", metavar="FILE.tsv", help="one brain per row, with the row's conditions")
    for flag in _CONDITION_FLAGS:
        generate.add_argument(f"--{flag}", metavar="VALUE|LOW:HIGH", help="drawn from the model's range if left out")
    generate.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE|LOW:HIGH",
        help="any other condition of the model, by its name; can be given several times",
    )
    generate.add_argument("--extrapolate", action="store_true", help="allow conditions outside the model's range")
    generate.add_argument("--steps", type=int, help="DDIM steps (default: the model's)")
    generate.add_argument("--eta", type=float, help="0 deterministic DDIM, 1 ancestral (default: the model's)")
    generate.add_argument("--guidance", type=float, help="classifier-free guidance, 1 is none (default: the model's)")
    generate.add_argument("--batch-size", type=int, default=4, help="brains drawn at once (default 4)")

    evaluate = verb(
        "evaluate",
        _evaluate,
        "compare a generated dataset with a real one, as an HTML report",
        "brainldm evaluate ./synthetic ./people ./report --model ./model",
    )
    evaluate.add_argument("synthetic", metavar="SYNTHETIC", help="dataset that `generate` wrote")
    evaluate.add_argument("real", metavar="REAL", help="BIDS dataset on the same grid")
    evaluate.add_argument("out", metavar="OUT", help="folder to make")
    evaluate.add_argument("--model", metavar="MODEL", help="adds its reconstructions and a sweep of one condition")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")

    convert = verb(
        "convert",
        _convert,
        "make a model folder of MONAI state dicts, or the reverse",
        "brainldm convert autoencoder.pth,diffusion_model.pth ./model\n         brainldm convert ./model ./monai",
    )
    convert.add_argument("source", metavar="FROM", help="AUTOENCODER,UNET state dicts (.pt, .pth), or a model folder")
    convert.add_argument("target", metavar="TO", help="folder to make")
    convert.add_argument("--spacing", type=float, default=1, metavar="MM", help="voxel size of its images (default 1)")
    convert.add_argument("--head-channels", metavar="N,N,N", help="channels of an attention head, per level")
    convert.add_argument("--autoencoder-norm-groups", type=int, default=32, metavar="N", help="default 32")
    convert.add_argument("--unet-norm-groups", type=int, default=32, metavar="N", help="default 32")
    convert.add_argument("--prediction", default="epsilon", choices=("epsilon", "velocity", "x0"))
    convert.add_argument("--latent-scale", type=float, default=1.0, help="factor on the latents (default 1)")
    return parser


def _train(arguments: Sequence[str]) -> None:
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.train import run

    refuse_silent_cpu()
    run(arguments)


def _demo(options: argparse.Namespace) -> None:
    from brainldm import demo

    figures = demo.demo(options.out, demo.TINY if options.tiny else demo.FULL)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    from brainldm.evaluation.report import headline_lines

    print("\n".join([*headline_lines(figures), f"Report: {os.path.join(options.out, 'report', 'report.html')}"]))


def _population(options: argparse.Namespace) -> None:
    from brainldm.console import Counter
    from brainldm.data.population import write_population

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
    import dataclasses

    from brainldm.console import Counter, say
    from brainldm.data.prepare import parse_shard, prepare
    from brainldm.data.scan import Options

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
    from brainldm.check import check, require_usable
    from brainldm.data.fingerprint_text import lines
    from brainldm.data.inspection import Options

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


def _export(options: argparse.Namespace) -> None:
    from brainldm.training.export import export

    print(f"{options.model} {export(options.autoencoder, options.diffusion, options.model)}")


def _generate(options: argparse.Namespace) -> None:
    from brainldm.generation.dataset import Settings, draw_conditions, generate, read_conditions
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.weights.model_folder import load_model

    refuse_silent_cpu()
    named = {
        column: value
        for flag, column in _CONDITION_FLAGS.items()
        if (value := getattr(options, flag.replace("-", "_"))) is not None
    }
    for text in options.condition:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in named:
            why = "is given twice" if equals and name in named else "is no NAME=VALUE or NAME=LOW:HIGH"
            raise UserError(f"--condition {text}: {why}. Example: --condition age=60:75.")
        named[name] = value
    if options.participants and named:
        raise UserError("--participants and single conditions exclude each other. Put the conditions into the table.")
    if options.n is not None and options.n < 1 or options.batch_size < 1 or (options.steps or 1) < 1:
        raise UserError("--n, --steps and --batch-size must be at least 1.")
    model = load_model(options.model)
    if options.participants:
        rows = read_conditions(options.participants, model.spec.covariates)[: options.n]
    else:
        rows = draw_conditions(model.spec.covariates, options.n or 1, options.seed, named)
    defaults = model.spec.sampling
    generate(
        model,
        options.out,
        rows,
        Settings(
            seed=options.seed,
            num_steps=options.steps or defaults["num_steps"],
            eta=defaults["eta"] if options.eta is None else options.eta,
            guidance=defaults["guidance"] if options.guidance is None else options.guidance,
            batch_size=min(options.batch_size, len(rows)),
            extrapolate=options.extrapolate,
        ),
    )


def _evaluate(options: argparse.Namespace) -> None:
    from brainldm.assess import assess

    _print_figures(assess(options.synthetic, options.real, options.out, options.model), options)


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
            prediction=options.prediction,
            latent_scale=options.latent_scale,
            num_head_channels=parse_head_channels(options.head_channels),
            autoencoder_norm_groups=options.autoencoder_norm_groups,
            unet_norm_groups=options.unet_norm_groups,
        ),
    )
    print(f"{options.target} {digest}")


def _print_figures(figures: dict, options: argparse.Namespace) -> None:
    from brainldm.evaluation.report import summary_lines

    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        print("\n".join(summary_lines(figures)))


if __name__ == "__main__":
    sys.exit(main())
