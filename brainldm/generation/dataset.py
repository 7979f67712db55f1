"""Synthetic BIDS datasets: conditions in, volumes and their provenance out, stopped and split as a cluster pleases."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np

from brainldm.diffusion.sampling import Sampling
from brainldm.generation import archive
from brainldm.generation.conditions import check_conditions
from brainldm.generation.finalize import finalize
from brainldm.generation.job import JOB, Job, Row, begin_or_continue, conditions_sha256
from brainldm.generation.manifest import (
    Entry,
    completion_path,
    line,
    manifest_path,
    problem,
    read_manifest,
    shard_is_done,
    write_manifest,
)
from brainldm.generation.sampler import Sampler, check_sampling, finished, make_sampler
from brainldm.generation.subject import BadBrain, Written, subject_path, write_subject
from brainldm.runtime.console import Progress
from brainldm.runtime.errors import BrainldmError, Stopped, UserError
from brainldm.runtime.files import clear_temporaries, file_sha256, write_json
from brainldm.runtime.format import format_bytes, format_count
from brainldm.runtime.lock import LOCK, locked, require_own_folder
from brainldm.runtime.rules import shown
from brainldm.runtime.shards import WHOLE, Shard, check_shard, shard_suffix
from brainldm.runtime.signals import PreemptionHandler
from brainldm.volumes.grids import Grid
from brainldm.weights.gan_folder import GanModel
from brainldm.weights.model_folder import Model

WRITERS = 2
"""Threads that compress and write while the next batch is computed."""
_WAITING = 2
"""Batches that may wait to be written: the memory that they take does not grow with the dataset."""
_SMALLEST_SHARE = 0.1
"""Of the bytes of a volume in memory, what its compressed file takes at least."""
_FILES_EACH = 3
"""Image and two folders."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a dataset is drawn.

    The same program of `batch_size` samples runs whatever is left to draw, so a brain depends on its seed, index,
    conditions and the batch size, which is recorded with it, and not on how many are drawn with it. Raises UserError
    for a seed that is not 0 <= seed < 2^63, or a batch size or chunk size below 1.

    extrapolate: allow conditions outside what the model was trained on.
    chunk_size: brains that shards take in turn (None: a batch).
    repeat: consecutive brains that share their noise, as those of a sweep.
    sessions: whether these are the sessions of one person.
    archive: "tar" for one of each shard in place of loose files.
    """

    sampling: Sampling = Sampling()
    seed: int = 0
    batch_size: int = 4
    extrapolate: bool = False
    chunk_size: int | None = None
    repeat: int = 1
    sessions: bool = False
    archive: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise UserError(f"The sampling is {shown(self.sampling)}; a Sampling is wanted.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UserError(f"The seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1.")
        if self.archive not in (None, *archive.KINDS):
            raise UserError(f"The archive is {shown(self.archive)}; {' or '.join(archive.KINDS)} is wanted, or none.")
        counts = {"batch size": self.batch_size, "chunk size": self.chunk_size or 1, "repeat": self.repeat}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"The {name} is {value!r}; it must be a whole number from 1 on.")


def generate(
    model: Model | GanModel,
    out: str | Path,
    rows: Sequence[Row],
    settings: Settings,
    note: str = "",
    shard: Shard = WHOLE,
    verify: bool = False,
    ids: Sequence[str] | None = None,
) -> None:
    """Draw one brain per row of conditions and write them as a BIDS dataset in `out`, from where it stopped before.

    Sample k is drawn with the key folded from (settings.seed, k // settings.repeat). A brain that the manifest has, and
    whose file has the recorded length (with `verify`: the recorded SHA-256), is not drawn again. `shard` (i, n), from
    1, does its share of the brains, and needs nothing from the others; `finalize` then makes one dataset of them. A run
    for the whole ends with that. `note` ends the dataset's README. `ids` name the subjects, one for each row
    (with sessions: each `settings.repeat` rows), as sub-0001 (None: numbered).

    Raises UserError when `out` holds something else, was begun as another dataset, or another run of the same shard is
    at work in it, and for conditions outside the model's ranges; Stopped after SIGTERM or Ctrl-C and on a full disk,
    with everything that is written kept; BrainldmError when the model made volumes that are no images, with all others
    written.
    """
    generate_shards(model, out, rows, settings, [shard], note, verify, ids)


def generate_shards(
    model: Model | GanModel,
    out: str | Path,
    rows: Sequence[Row],
    settings: Settings,
    shards: Sequence[Shard],
    note: str = "",
    verify: bool = False,
    ids: Sequence[str] | None = None,
) -> None:
    """Draw several shards (i, n) of one n after the other, as `generate` draws one, with one compiled program."""
    for shard in shards:
        check_shard(shard)
    if not isinstance(model, GanModel):
        check_sampling(model.spec, settings.sampling)
    flags = check_conditions(rows, model.spec.covariates, settings.extrapolate, model.spec.takes_subsets)
    out = Path(out)
    job = _job(model, rows, settings, note, shards[0][1], ids)
    require_own_folder(out, JOB)

    @functools.cache
    def sample() -> Sampler:
        return make_sampler(model, settings.sampling, batch_size=settings.batch_size, finish=False)

    conditions = model.spec.covariates.encode(rows)
    run = _Run(out, job, model.spec.grid, rows, flags, conditions, sample, functools.partial(finished, model.spec))
    bad = [said for shard in shards for said in _draw_shard(run, shard, verify)]
    if bad:
        raise BrainldmError(
            f"{bad[0]}, and {len(bad)} of {format_count(len(rows), 'brain')} in all are like it; not written. All "
            "others of this run are. Other conditions, fewer steps or a model that is trained further may help."
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What shards have in common. `sampler` makes the compiled sampler when the first brain is drawn, and `finish`
    does what is left with each volume, which writers do while the next batch is computed."""

    out: Path
    job: Job
    grid: Grid
    rows: Sequence[Row]
    flags: Sequence[bool]
    conditions: np.ndarray
    sampler: Callable[[], Sampler]
    finish: Callable[[np.ndarray], np.ndarray]


def _draw_shard(run: _Run, shard: Shard, verify: bool) -> list[str]:
    """Draw what is left of a shard; what was not written, and why."""
    out = run.out
    with locked(out, LOCK + shard_suffix(shard), keep=False):
        run = dataclasses.replace(run, job=begin_or_continue(out, run.job))
        bad = _complete(run, shard, verify)
        if shard == WHOLE and not bad:
            finalize(out, full=False)
    return bad


def _complete(run: _Run, shard: Shard, verify: bool) -> list[str]:
    """Draw what is left of a shard whose lock is held, and say that it is done; what was not written, and why."""
    out, job, path = run.out, run.job, manifest_path(run.out, shard)
    kept = _kept(run, shard, verify)
    todo = [index for index in job.indices(shard) if index not in kept]
    _check_room(out, len(todo), run)
    tar = archive.archive_path(out, shard)
    for name in ("",) if shard == WHOLE else (path.name, tar.name):  # other shards may be writing theirs
        clear_temporaries([out], name)
    clear_temporaries(subject_path(out, job, index).parent for index in todo)
    entries = [kept[index] for index in sorted(kept)]
    if job.archive:
        entries = archive.tidy(tar, sorted(entries, key=lambda entry: entry["begin"]))
    write_manifest(path, entries)
    if todo:
        with open(path, "ab") as manifest, _opened_store(job, tar, entries) as store:
            bad = _draw(run, todo, len(kept), manifest, store)
        if bad:
            return bad
        del kept
        entries = sorted(read_manifest(path), key=lambda entry: entry["index"])
        if job.archive:
            entries = archive.tidy(tar, entries)
        write_manifest(path, entries)
    if job.archive:
        archive.close_archive(tar, entries)
    if todo or not shard_is_done(out, shard):
        _write_completion(out, job, shard)
    return []


def _job(
    model: Model | GanModel, rows: Sequence[Row], settings: Settings, note: str, shards: int, ids: Sequence[str] | None
) -> Job:
    columns = model.spec.covariates.column_descriptions()
    for entry in columns.values():
        entry["Description"] += " (asked of the model)"
    provenance = model.spec.provenance
    return Job(
        model_sha256=model.sha256,
        kind=model.spec.kind,
        sampling=None if isinstance(model, GanModel) else settings.sampling,
        seed=settings.seed,
        batch_size=settings.batch_size,
        count=len(rows),
        conditions_sha256=conditions_sha256(rows),
        shards=shards,
        chunk_size=settings.chunk_size or settings.batch_size,
        repeat=settings.repeat,
        sessions=settings.sessions,
        archive=settings.archive,
        ids=None if ids is None else tuple(ids),
        about={
            "columns": columns,
            "note": note,
            "trained_on": provenance.get("dataset", "unknown"),
            "embedded_population": bool(provenance.get("embedded_population", False)),
        },
    )


def _kept(run: _Run, shard: Shard, verify: bool) -> dict[int, Entry]:
    """What is done of a shard, by index."""
    mine = set(run.job.indices(shard))
    return {
        entry["index"]: entry
        for entry in read_manifest(manifest_path(run.out, shard))
        if entry["index"] in mine
        and entry["conditions"] == dict(run.rows[entry["index"]])
        and problem(run.out, entry, full=verify) is None
    }


_Store = Callable[[Sequence[Written]], Sequence[Entry]]
"""Brings what writers packed to disk, if it is not there yet; the entries."""


@contextlib.contextmanager
def _opened_store(job: Job, tar: Path, entries: Sequence[Entry]) -> Iterator[_Store]:
    if job.archive is None:
        yield lambda written: [brain.entry for brain in written]
        return
    with archive.open_to_append(tar, entries) as file:
        yield functools.partial(archive.append, file)


def _write_completion(out: Path, job: Job, shard: Shard) -> None:
    """Say that a shard is done: its number of brains, the hash of its manifest, and what it was made with."""
    write_json(
        completion_path(out, shard),
        {
            "shard": list(shard),
            "brains": len(job.indices(shard)),
            "manifest_sha256": file_sha256(manifest_path(out, shard)),
            "brainldm": job.version,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            **({"archive_sha256": file_sha256(archive.archive_path(out, shard))} if job.archive else {}),
        },
    )


def _check_room(out: Path, count: int, run: _Run) -> None:
    """Raise UserError where the dataset cannot fit, however well it is compressed."""
    space = shutil.disk_usage(out).free
    least = int(count * np.prod(run.grid.shape) * 2 * _SMALLEST_SHARE)
    inodes = os.statvfs(out)
    if space < least:
        raise UserError(
            f"{out}: {format_bytes(space)} are free, and {format_count(count, 'brain')} take {format_bytes(least)} at "
            "the very least. Make room, or give a folder on another disk."
        )
    if run.job.archive is None and inodes.f_files and inodes.f_favail < count * _FILES_EACH:
        raise UserError(
            f"{out}: the file system has room for {inodes.f_favail} more files, and {format_count(count, 'brain')} "
            f"take {count * _FILES_EACH}. Make room, or give a folder on another file system."
        )


def _draw(run: _Run, todo: Sequence[int], done: int, manifest: BinaryIO, store: _Store) -> list[str]:
    """Draw and write the brains `todo`, of which there are `done` already; what was not written, and why.

    While one batch is computed, those before it are compressed and written. Raises Stopped.
    """
    bad: list[str] = []
    waiting: collections.deque[list[Future]] = collections.deque()
    size, total, sample = run.job.batch_size, done + len(todo), run.sampler()

    def settle(count: int) -> None:
        nonlocal done
        while len(waiting) > count:
            written = []
            for future in waiting.popleft():
                try:
                    written.append(future.result())
                except BadBrain as error:
                    bad.append(str(error))
            entries = store(written)
            manifest.write(b"".join(map(line, entries)))
            manifest.flush()
            os.fsync(manifest.fileno())
            done += len(entries)
            progress(done)  # of whole batches: the brains of one are drawn together

    with (
        PreemptionHandler() as stop,
        ThreadPoolExecutor(WRITERS) as pool,
        Progress("generating", total, done) as progress,
    ):
        try:
            for start in range(0, len(todo), size):
                indices = np.array(todo[start : start + size])
                volumes = sample(run.job.seed, indices // run.job.repeat, run.conditions[indices])
                waiting.append(
                    [
                        pool.submit(
                            write_subject,
                            run.out,
                            run.job,
                            int(index),
                            run.rows[index],
                            run.flags[index],
                            volume,
                            run.grid.affine,
                            run.finish,
                        )
                        for index, volume in zip(indices, volumes, strict=True)
                    ]
                )
                settle(_WAITING)
                if stop.requested:
                    break
            settle(0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Stopped(
                f"{run.out}: {error.strerror} after {format_count(done, 'brain')} of {total}; what is written is "
                "whole. Make room, and the same command goes on from here."
            ) from error
    if stop.requested and done + len(bad) < total:
        raise Stopped(
            f"Stopped after {format_count(done, 'brain')} of {total}; what is written is whole. The same command goes "
            "on from here."
        )
    return bad
