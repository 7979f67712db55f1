"""From finished shards to a finished dataset: everything checked, then the tables that make it one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brainldm.datasets.bids import write_dataset_files
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.archive import PATTERN, archive_path, strange_archives
from brainldm.generation.dataset_page import PAGE, write_dataset_page
from brainldm.generation.job import JOB, Job, read_job
from brainldm.generation.manifest import Entry, completion_path, find_problems, read_manifests, shard_is_done
from brainldm.generation.sessions import SESSIONS_TAR, split_columns, table_row, write_session_tables
from brainldm.generation.subject import MARK
from brainldm.runtime.errors import BrainldmError
from brainldm.runtime.files import SUMS, file_sha256, read_json, write_atomically
from brainldm.runtime.format import format_count, format_names
from brainldm.volumes.grids import SPACE
from brainldm.weights.parameter_files import KINDS

SAMPLER_NAMES = {"ddim": "DDIM", "ddpm": "DDPM", "dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun"}
"""What a dataset calls its sampler."""

README = """This dataset is synthetic.

Every brain in it was drawn by {kind} (brainldm {version}, model {model}), {conditions}.
No image shows a person. The header of every image says {mark} in its description field, and T1w.json, which holds for
all images, says "Synthetic": true.

{job} says what was asked for; the files manifest-*.jsonl say of each brain how it was drawn and which bytes it has.

Research use only; not a medical device and not for diagnosis. Images drawn by a generative model can resemble the
images that it was trained on.
{note}"""

_CONDITIONS = {True: "for the conditions in participants.tsv", False: "which takes no conditions"}

_CHANGES = "1.0.0 {date}\n - {count} drawn with brainldm {version}\n"

_IGNORED = f"{JOB}\nmanifest-*.jsonl\nshard-*.json\n{SUMS}\nbrainldm.lock*\n*.html\n"
_ARCHIVES = f"{PATTERN}\n{SESSIONS_TAR}\n"
"""What is in the folder besides what BIDS knows."""


def finalize(out: str | os.PathLike, full: bool = True) -> int:
    """Check a generated dataset and write what makes it whole; returns the number of its brains.

    All shards must be done, each brain recorded once, and each file as recorded: of its length and, when `full`, its
    SHA-256. Then participants, T1w.json, description, README, CHANGES, dataset.html and SHA256SUMS are written.
    Raises UserError for a folder that `generate` did not make, BrainldmError for what is missing or wrong.
    """
    out = Path(out)
    job = read_job(out)
    left = [i for i in range(1, job.shards + 1) if not shard_is_done(out, (i, job.shards))]
    if left:
        raise BrainldmError(
            f"{out}: {len(left)} of {format_count(job.shards, 'shard')} are not done "
            f"({format_names(list(map(str, left)))}). Run `brainldm generate` with --shard i/{job.shards} for each."
        )
    entries = sorted(read_manifests(out), key=lambda entry: entry["index"])
    wrong = [f"{name} is recorded {n} times" for name, n in Counter(e["id"] for e in entries).items() if n > 1]
    there = {entry["index"] for entry in entries}
    wrong += [f"{job.name(index)} is not recorded" for index in range(job.count) if index not in there]
    wrong += [f"{name} is {what}" for name, what in find_problems(out, entries, full).items()]
    if job.archive:
        wrong += [f"{name} is {what}" for name, what in strange_archives(out, entries, closed=True).items()]
    if wrong:
        raise BrainldmError(
            f"{out}: {len(wrong)} of {format_count(job.count, 'brain')} are not as they should be: "
            f"{format_names(wrong)}. The `brainldm generate` that made them, with --verify, draws them again."
        )
    more = _write_tables(out, job, entries)
    sampling = job.sampling
    sampler = f"{SAMPLER_NAMES[sampling.sampler]}, {sampling.num_steps} steps" if sampling else ""
    write_dataset_page(out, job, entries, sampler)
    _write_sums(out, job, entries, more)  # last: a folder with it is finished
    return len(entries)


def _write_tables(out: Path, job: Job, entries: Sequence[Entry]) -> dict[str, str]:
    """Write the tables; the SHA-256 of those that not every dataset has, by path."""
    about, sampling, kind = job.about, job.sampling, KINDS[job.kind]
    made_by = f"{kind.removeprefix('a ')} {job.model_sha256}"
    if sampling is not None:
        made_by += f", {SAMPLER_NAMES[sampling.sampler]} with {sampling.num_steps} steps"
    write_atomically(out / ".bidsignore", (_IGNORED + (_ARCHIVES if job.archive else "")).encode())
    count = format_count(job.count, "synthetic brain")
    write_atomically(out / "CHANGES", _CHANGES.format(date=job.begun, count=count, version=job.version).encode())
    columns = dict(about["columns"])
    if columns:
        columns["extrapolated"] = {
            "Description": "whether a condition lies outside what the model was trained on",
            "Levels": {"true": "outside", "false": "inside"},
        }
    of_people, of_sessions = split_columns(job, columns)
    write_dataset_files(
        out,
        name="Synthetic T1w brains",
        rows=(table_row(job, entry) for entry in (entries[:: job.repeat] if job.sessions else entries)),
        columns=of_people,
        generated_by={
            "Name": "brainldm",
            "Version": job.version,
            "Description": made_by,
        },
        readme=README.format(
            kind=kind,
            conditions=_CONDITIONS[bool(columns)],
            version=job.version,
            model=job.model_sha256[:12],
            mark=MARK,
            job=JOB,
            note=f"\n{about['note']}\n" if about["note"] else "",
        ),
        extra={
            "Synthetic": True,
            "Conditional": bool(columns),
            **(
                {"ConditionsLeftOut": True}
                if any(len(e["conditions"]) < len(about["columns"]) for e in entries)
                else {}
            ),
            "ModelKind": kind,
            "ModelSHA256": job.model_sha256,
            "TrainedOn": about["trained_on"],
            "EmbeddedPopulation": about["embedded_population"],
        },
        sidecar=_sidecar(job),
    )
    return write_session_tables(out, job, entries, of_sessions)


def _write_sums(out: Path, job: Job, entries: Sequence[Entry], more: Mapping[str, str]) -> None:
    tables = ("dataset_description.json", "participants.tsv", "participants.json", "README", "CHANGES", "T1w.json")
    others = {name: file_sha256(out / name) for name in (*tables, JOB, PAGE)}
    if job.archive:
        shards = [(i, job.shards) for i in range(1, job.shards + 1)]
        images = {archive_path(out, s).name: read_json(completion_path(out, s))["archive_sha256"] for s in shards}
    else:
        images = {entry["file"]: entry["sha256"] for entry in entries}
    sums = images | others | more
    write_atomically(out / SUMS, (f"{sums[name]}  {name}\n".encode() for name in sorted(sums)))


def _sidecar(job: Job) -> dict[str, Any]:
    """What holds for every image, by BIDS's principle of inheritance."""
    return {
        "Description": f"T1-weighted brain drawn by {KINDS[job.kind]}",
        "Synthetic": True,
        "Modality": "MR",
        "SkullStripped": True,
        "SpatialReference": SPACE,
        **(_sampled(job.sampling) if job.sampling else {"Model": KINDS[job.kind]}),
        "Seed": job.seed,
        "BatchSize": job.batch_size,
        "ModelSHA256": job.model_sha256,
    }


def _sampled(sampling: Sampling) -> dict[str, Any]:
    return {
        "Sampler": SAMPLER_NAMES[sampling.sampler],
        "Spacing": sampling.spacing,
        "Steps": sampling.num_steps,
        "Eta": sampling.eta,
        "Guidance": sampling.guidance,
        "GuidanceInterval": list(sampling.guidance_interval),
    }
