"""The command `generate`: a dataset of synthetic brains."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from brainldm.commands.arguments import add_shard, interval, positive, shard_of
from brainldm.runtime.errors import UserError
from brainldm.runtime.shards import WHOLE

if TYPE_CHECKING:
    from brainldm.datasets.demography import Demography
    from brainldm.evaluation.measures.backend import Backend
    from brainldm.weights.model_folder import ModelSpec

# Flags of `generate` that name one condition each, with the column they fill.
_CONDITION_FLAGS = {"age": "age", "sex": "sex", "ventricles-ml": "ventricles_ml", "brain-ml": "brain_ml"}

MOST = 1_000_000
"""Brains that one run makes at most."""


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    parser = add_command(
        "generate",
        run,
        "draw brains with a model and write them as a BIDS dataset",
        "brainldm generate ./model ./synthetic --n 8 --age 60:75 --sex F --ventricles-ml 40\n"
        "         brainldm generate ./model ./many --n 100000 --shards 40   (an array of 40 tasks; then finalize)\n\n"
        "The same command again goes on where it was stopped, and draws anew what is missing or damaged.",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder")
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--n", type=int, help="how many brains (default 1; with --participants, its rows)")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^63 - 1 (default 0)")
    parser.add_argument(
        "--participants", metavar="FILE.tsv", help="one brain per row, with the row's conditions and id"
    )
    for flag in _CONDITION_FLAGS:
        parser.add_argument(
            f"--{flag}", metavar="VALUE|LOW:HIGH", help="left out: as the people it was trained on have it"
        )
    parser.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE|LOW:HIGH",
        help="any other condition of the model, by its name; can be given several times",
    )
    parser.add_argument(
        "--uniform",
        action="store_true",
        help="draw each condition by itself and evenly, not as those that the model was trained on have them together",
    )
    parser.add_argument(
        "--population",
        metavar="FILE.json",
        help='other people than the model\'s, as {"age": [60, 80], "sex": {"F": 0.6, "M": 0.4}}: a number by its range '
        "or its evenly spaced quantiles, levels by their shares",
    )
    parser.add_argument(
        "--only-asked",
        action="store_true",
        help="leave what is not asked for to the model, one that was trained with config.loss.covariate_dropout",
    )
    parser.add_argument(
        "--sweep",
        metavar="NAME=LOW:HIGH:COUNT|NAME=A|B",
        help="draw every brain COUNT times, noise and all else as they are",
    )
    parser.add_argument(
        "--sessions",
        metavar="NAME=V1,V2,...",
        help="draw every person several times, as at the ages of age=60,65,70: noise and rank among others stay",
    )
    parser.add_argument("--extrapolate", action="store_true", help="allow conditions that the model never saw")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the model's)")
    parser.add_argument("--eta", type=float, help="0 deterministic DDIM, 1 ancestral (default: the model's)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance, 1 is none (default: the model's)")
    parser.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LOW:HIGH",
        help="noise levels at which there is guidance, 0 clean and 1 pure noise (default: the model's)",
    )
    parser.add_argument("--sampler", help="ddim, ddpm, dpmpp_2m or heun (default: the model's)")
    parser.add_argument(
        "--spacing", help="of the noise levels: leading, trailing, karras, log_snr or monai (default: the model's)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        help="brains drawn at once; it decides last digits (default 4)",
    )
    parser.add_argument(
        "--labels", action="store_true", help="write a label map beside each brain: without weights, of the ventricles"
    )
    parser.add_argument(
        "--label-weights", metavar="FILE", help="of SynthSeg or MeshNet, for --labels (as `measure --weights` takes)"
    )
    add_shard(parser, "brain")
    parser.add_argument(
        "--chunk-size", type=positive, metavar="K", help="brains that shards take in turn (default: the batch size)"
    )
    parser.add_argument(
        "--archive",
        choices=("tar",),
        help="put the brains of each shard into one tar (WebDataset) in place of loose files, where these are counted",
    )
    parser.add_argument(
        "--verify", action="store_true", help="going on, compare every file's SHA-256 with its record, not its length"
    )
    parser.set_defaults(resumes=True, writes=("out",))


def run(options: argparse.Namespace) -> None:
    from brainldm.evaluation.measures.backends import open_backend
    from brainldm.generation.conditions import (
        draw_conditions,
        percentiles,
        read_conditions,
        session_conditions,
        sweep_conditions,
        table_ids,
    )
    from brainldm.generation.dataset import Settings, generate
    from brainldm.parallel.devices import refuse_silent_cpu
    from brainldm.planning.advice import device_memory, generation_advice
    from brainldm.runtime.compiled_programs import keep_programs
    from brainldm.runtime.console import log
    from brainldm.weights.gan_folder import load_generator

    shard = shard_of(options)
    refuse_silent_cpu()
    keep_programs()
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
    if options.participants and (named or options.uniform or options.population):
        raise UserError(
            "--participants and single conditions, --uniform or --population exclude each other. Put the conditions "
            "into the table."
        )
    if options.sessions and (options.sweep or options.uniform):
        other = "--sweep" if options.sweep else "--uniform"
        raise UserError(f"--sessions and {other} exclude each other. Leave one out.")
    if options.n is not None and not 1 <= options.n <= MOST:
        raise UserError(
            f"--n is {options.n}; it must be at least 1 and at most {MOST:,}. For more, make datasets with different "
            "seeds."
        )
    if options.labels and shard != WHOLE:
        raise UserError("--labels are made of a whole dataset. Leave them out, and measure --labels the finished one.")
    if options.labels and options.archive:
        raise UserError(
            "--labels and --archive exclude each other. Leave one out; `measure --labels` takes the unpacked."
        )
    if options.label_weights and not options.labels:
        raise UserError("--label-weights are of label maps, which are not asked for. Add --labels, or leave them out.")
    backend = open_backend(None, options.label_weights) if options.labels else None
    asked = {
        "num_steps": options.steps,
        "eta": options.eta,
        "guidance": options.guidance,
        "guidance_interval": options.guidance_interval,
        "sampler": options.sampler,
        "spacing": options.spacing,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    model = load_generator(options.model)
    if not model.spec.covariates:
        _require_nothing_asked(options, named, asked)
    settings = Settings(
        sampling=dataclasses.replace(model.spec.sampling, **asked),
        seed=options.seed,
        batch_size=options.batch_size,
        extrapolate=options.extrapolate,
        chunk_size=options.chunk_size,
        archive=options.archive,
    )
    covariates, subset, ids = model.spec.covariates, options.only_asked, None
    if subset and not model.spec.takes_subsets:
        raise UserError(
            "--only-asked: this model needs all its conditions, because it was trained without "
            "config.loss.covariate_dropout. Leave the flag out: what is not asked for is drawn."
        )
    visits = _sessions(options, model.spec, named) if options.sessions else None
    demography = _demography(options, model.spec) if covariates else None
    if options.participants:
        rows = read_conditions(options.participants, covariates, model.spec.takes_subsets)[: options.n]
        if not options.sweep and (ids := table_ids(options.participants)) is not None:
            ids = ids[: len(rows)]
    else:
        rows = draw_conditions(covariates, options.n or 1, options.seed, named, demography, subset)
        if demography is not None:
            for line in percentiles(covariates, demography, named):
                log(line)
    if options.sweep:
        alone = len(rows)
        rows = sweep_conditions(covariates, options.sweep, rows)
        settings = dataclasses.replace(settings, repeat=len(rows) // alone)
    if visits is not None:
        rows = session_conditions(covariates, demography, *visits, rows)
        settings = dataclasses.replace(settings, repeat=len(visits[1]), sessions=True)
    if said := generation_advice(model.spec, options.batch_size, device_memory()):
        log(said)
    generate(model, options.out, rows, settings, shard=shard, verify=options.verify, ids=ids)
    if shard != WHOLE:
        log(f"Share {shard[0]} of {shard[1]} is done. After the last one: brainldm finalize {options.out}")
    if backend is not None:
        _write_labels(options.out, backend)


def _sessions(options: argparse.Namespace, spec: ModelSpec, named: dict[str, str]) -> tuple[str, list[float]]:
    """What differs between sessions, and its values; the first of them is asked for in `named`."""
    from brainldm.generation.conditions import parse_sessions

    if spec.demography is None:
        raise UserError(
            "--sessions: the model does not say what goes with what among the people that it was trained on. Export it "
            "again from its work dirs, or draw with --sweep, which leaves all else as it is."
        )
    name, values = parse_sessions(spec.covariates, options.sessions)
    if name in named:
        raise UserError(f"{name} is asked for by itself and by --sessions. Leave one out.")
    if not options.participants:
        named[name] = str(values[0])
    return name, values


def _demography(options: argparse.Namespace, spec: ModelSpec) -> Demography | None:
    """Whose conditions are drawn. Raises UserError where that cannot be known."""
    from brainldm.runtime.files import read_json

    if options.uniform and options.population:
        raise UserError("--uniform and --population exclude each other. Leave one out.")
    if options.population is None:
        return None if options.uniform else spec.demography
    if spec.demography is None:
        raise UserError(
            "--population: the model does not say what goes with what among the people that it was trained on. Export "
            "it again from its work dirs, or give a table with --participants."
        )
    marginals = read_json(options.population)
    if not isinstance(marginals, dict):
        raise UserError(f"{options.population}: names of conditions are wanted, with a range or shares each.")
    try:
        return spec.demography.with_marginals(marginals, spec.covariates)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{options.population}: {error}") from error


def _require_nothing_asked(options: argparse.Namespace, named: dict[str, str], asked: dict[str, Any]) -> None:
    """Raise UserError for a condition or a setting of the sampler, of a model that has neither."""
    from brainldm.weights.parameter_files import KINDS, open_folder

    people = [name for name in ("participants", "population", "uniform", "sweep", "sessions") if getattr(options, name)]
    if people or named or asked:
        kind = KINDS[open_folder(options.model).kind]
        given = ", ".join([f"--{name}" for name in people] or named or asked).replace("num_", "")
        what = "takes no conditions" if people or named else "draws in one pass, without a sampler"
        raise UserError(f"{options.model}: {kind}, which {what}, and {given} is asked for. Leave it out.")


def _write_labels(out: str, backend: Backend) -> None:
    from brainldm.evaluation.measures.run import label_dataset
    from brainldm.runtime.console import Phases, log

    with Phases() as show:
        missing = label_dataset(out, backend, lambda done, total: show("labels", done, total))
    for name, reason in missing.items():
        log(f"{name} has no label map: {reason}")
