"""Every scan of a source brought to the training grid, on all cores, resumable, in shards."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from brainldm.datasets.find import Found, find_scans
from brainldm.datasets.folders import is_bids
from brainldm.datasets.scans import Scan, ScanError
from brainldm.preparation import records
from brainldm.preparation.records import OutputPaths
from brainldm.preparation.registration import require_simpleitk
from brainldm.preparation.scan import PrepareOptions, prepare_scan, software
from brainldm.preparation.stripping import list_masks, mask_of
from brainldm.preparation.tables import write_excluded_table, write_tables
from brainldm.runtime.errors import BrainldmError, Stopped, UserError
from brainldm.runtime.files import clear_temporaries, read_json, write_json
from brainldm.runtime.format import format_names
from brainldm.runtime.lock import LOCK, locked, require_own_folder
from brainldm.runtime.shards import WHOLE, Shard, check_shard, shard_suffix
from brainldm.runtime.signals import PreemptionHandler
from brainldm.runtime.workers import begin_worker
from brainldm.volumes.grids import SPACE

MARKER = "prepare.json"
"""The file of the options, which marks a folder as ours to continue."""
_FORMAT = 1
_ALWAYS_ALLOWED = 20
"""Scans that may be excluded before a run is given up half-way: of a small source the whole list is worth having."""
_ONE_THREAD = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did. `total` scans were found (those of other shards included), of which `prepared` are on the grid
    and `excluded` are not passed on; `done_now` were worked on in this run. `complete`: no scan is left, and the
    tables and the page are written."""

    total: int
    prepared: int
    excluded: int
    done_now: int
    complete: bool
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Job:
    scan: Scan
    out: Path
    shown: str
    options: PrepareOptions


def prepare(
    source: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    table: str | Path | None = None,
    pattern: str | None = None,
    workers: int = 1,
    shard: Shard = WHOLE,
    participants: Collection[str] | None = None,
    max_excluded: float = 0.2,
    retry: bool = False,
    verify: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> Summary:
    """Bring the scans of `source` (see `find_scans`) to a training grid as the BIDS derivative `out`.

    A scan that is done is not done again, unless it or its mask changed (see `records.record_of`); `retry` repeats
    the excluded ones, `verify` compares every SHA-256. `shard` (i, n), from 1, takes each n-th scan; whichever run
    finds the last record present writes participants.tsv, excluded.tsv, quality.tsv and qc.html. With `participants`
    (as sub-01) it does theirs alone, and writes no file besides theirs: a run without, afterwards, writes the tables.
    The bytes of the output depend on source and options alone, not on workers, shards or interruptions.
    `progress(done, total, excluded)` is called after each scan.

    Raises UserError for a source without scans, an `out` that holds something else, was made with other options, or
    in which another run of the same shard is at work, a tool that is missing, or more excluded scans than the share
    `max_excluded` (with excluded.tsv written and nothing lost); Stopped after SIGTERM or Ctrl-C.
    """
    options = options or PrepareOptions()
    source, out = Path(source), Path(out)
    _require(source, out, options, workers, shard, max_excluded)
    found = find_scans(source, table=table, pattern=pattern)
    if not found.scans:
        first = f" The first of {len(found.excluded)} left out: {found.excluded[0].reason}." if found.excluded else ""
        raise UserError(f"{source}: no T1w scans in it.{first} Give a BIDS dataset, a folder, a list or a table.")
    found = _with_masks(found, options)
    require_own_folder(out, MARKER)
    if participants is not None:
        _require_participants(source, found, participants)
    # a second run would clear away what this one is writing
    with locked(out, LOCK + _suffix(shard, participants), keep=False):
        _continue_or_begin(out, options)
        recorded = options.recorded()
        mine = [
            scan
            for scan in found.scans[shard[0] - 1 :: shard[1]]
            if participants is None or scan.participant_id in participants
        ]
        todo, refused, done = [], 0, 0
        for scan in mine:
            record = records.record_of(OutputPaths(out, scan), recorded, verify)
            if record is None or (retry and "Reason" in record):
                todo.append(_Job(scan, out, _shown(source, scan.path), options))
            else:
                done += 1
                refused += "Reason" in record
        allowed = max_excluded * (len(found.scans) + len(found.excluded))
        kept = done - refused
        if progress is not None:
            progress(done, len(mine), refused)
        with contextlib.closing(_run(todo, workers)) as results:
            for was_kept in results:
                kept, refused = kept + was_kept, refused + (not was_kept)
                if progress is not None:
                    progress(kept + refused, len(mine), refused)
                if refused + len(found.excluded) > max(allowed, _ALWAYS_ALLOWED):
                    break
        if participants is not None:
            return Summary(len(mine), kept, refused, len(todo), False, found.notes)
        return _finish(source, out, found, options, shard, max_excluded, len(todo))


def _require_participants(source: Path, found: Found, participants: Collection[str]) -> None:
    known = {scan.participant_id for scan in found.scans} | {entry.name.partition("_")[0] for entry in found.excluded}
    if strange := sorted(set(participants) - known):
        raise UserError(f"{source}: has no scans of {format_names(strange)}. Its labels are those after sub-.")


def _suffix(shard: Shard, participants: Collection[str] | None) -> str:
    """What a run's lock is called besides: runs that do not share scans do not exclude each other."""
    if participants is None:
        return shard_suffix(shard)
    return "-" + hashlib.sha256(" ".join(sorted(participants)).encode()).hexdigest()[:12]


def _finish(
    source: Path,
    out: Path,
    found: Found,
    options: PrepareOptions,
    shard: Shard,
    max_excluded: float,
    done_now: int,
) -> Summary:
    """Tables and page when every scan has its record, and the count of the excluded."""
    recorded = options.recorded()
    results = [(scan, records.record_of(OutputPaths(out, scan), recorded)) for scan in found.scans]
    refused = sum(record is not None and "Reason" in record for _, record in results)
    prepared = sum(record is not None for _, record in results) - refused
    total, excluded = len(found.scans) + len(found.excluded), refused + len(found.excluded)
    complete = prepared + refused == len(found.scans)
    if shard[1] == 1 or complete:
        folders = {OutputPaths(out, scan).folder for scan in found.scans}
        # a run of another shard may be writing one of its own at the root
        clear_temporaries(folders | ({out, out / records.EXCLUDED} if shard[1] == 1 else set()))
    if excluded > max_excluded * total:
        write_excluded_table(out, found, results)
        raise UserError(
            f"{excluded} of {total} scans are excluded, more than the share {max_excluded:g} that is allowed "
            f"(--max-excluded). {out / 'excluded.tsv'} gives the reason for each; what is prepared stays. Mend the "
            "source, or allow more, and run the same command again."
        )
    if complete:
        write_tables(out, source, found, results, options)
    return Summary(total, prepared, excluded, done_now, complete, found.notes)


def _require(source: Path, out: Path, options: PrepareOptions, workers: int, shard: Shard, max_excluded: float) -> None:
    """Raise UserError for what cannot work, before anything is read."""
    check_shard(shard)
    if workers < 1 or not 0 <= max_excluded <= 1:
        raise UserError("--workers starts at 1, and --max-excluded is a share between 0 and 1.")
    here, there = source.resolve(), out.resolve()
    if here == there or there in here.parents:
        raise UserError(f"{out}: is, or holds, the source. Give another folder for the output.")
    if here in there.parents and here.is_dir() and not is_bids(here):
        raise UserError(f"{out}: lies in the source, and its images would be taken for scans. Give a folder beside it.")
    if not options.registered or options.bias_correction:
        require_simpleitk()
    if options.strip_command:
        tool = shlex.split(options.strip_command)[0]
        if shutil.which(tool) is None:
            raise UserError(f"--strip-command: {tool} is no command here. Install it, or give its whole path.")


def _with_masks(found: Found, options: PrepareOptions) -> Found:
    if not options.masks:
        return found
    masks = list_masks(Path(options.masks))
    return dataclasses.replace(found, scans=[dataclasses.replace(s, mask=mask_of(masks, s.path)) for s in found.scans])


def _continue_or_begin(out: Path, options: PrepareOptions) -> None:
    """Mark `out` as made with these options. Raises UserError when it was made with others."""
    marker = {"Format": _FORMAT, "Options": options.recorded()}
    if not (out / MARKER).exists():
        write_json(out / MARKER, marker)
        return
    before = read_json(out / MARKER)
    if before == marker:
        return
    old = before.get("Options") if isinstance(before, dict) else None
    old = old if isinstance(old, dict) else {}
    changed = [f"{k} {old.get(k)!r}, now {v!r}" for k, v in marker["Options"].items() if old.get(k) != v]
    raise UserError(
        f"{out}: was made with other options ({'; '.join(changed) or 'of another version'}), and images made in two "
        "ways do not belong into one dataset. Repeat the options of the first run, or give a new folder."
    )


def _shown(source: Path, path: Path) -> str:
    """The scan's file as the records name it: from the source on, so that they do not depend on the machine."""
    root = source if source.is_dir() else source.parent
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.name


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[bool]:
    """Do the jobs, in this process or in several, yielding whether each scan was kept. Raises Stopped."""
    with PreemptionHandler() as stop:
        results = _run_here(jobs) if workers == 1 or len(jobs) < 2 else _run_in_processes(jobs, workers, stop)
        with contextlib.closing(results):
            count = 0
            for kept in results:
                count += 1
                yield kept
                if stop.requested and count < len(jobs):
                    raise Stopped(
                        f"Stopped with {len(jobs) - count} scans to do; what is done is saved. The same command goes "
                        "on from here."
                    )


def _run_here(jobs: Sequence[_Job]) -> Iterator[bool]:
    for job in jobs:
        yield _do(job)


def _run_in_processes(jobs: Sequence[_Job], workers: int, stop: PreemptionHandler) -> Iterator[bool]:
    waiting, rest = set(), iter(jobs)
    # spawn: a forked child of a process that runs other threads can hang
    context = multiprocessing.get_context("spawn")
    with (
        _environment(dict.fromkeys(_ONE_THREAD, "1")),
        concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=begin_worker) as pool,
    ):
        try:
            while True:
                # few at a time, so that a stop does not wait for a queue
                while len(waiting) < 2 * workers and not stop.requested and (job := next(rest, None)) is not None:
                    waiting.add(pool.submit(_do, job))
                if not waiting:
                    return
                finished, waiting = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise BrainldmError(
                "A worker process ended suddenly, most likely for want of memory. What is done is saved: run the same "
                "command again with fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _do(job: _Job) -> bool:
    """Prepare one scan and write what came of it; whether it was kept."""
    paths, grid = OutputPaths(job.out, job.scan), job.options.target
    clear_temporaries([paths.folder])
    record: dict[str, Any] = {
        "Sources": [job.shown],
        **records.hashes(job.scan),
        "Options": job.options.recorded(),
        "Software": software(),
    }
    try:
        prepared = prepare_scan(job.scan.path, job.options, job.scan.mask)
    except ScanError as error:
        reason = str(error).replace(str(job.scan.path), job.shown)
        why = {"Stage": error.stage, "Reason": reason}
        records.write_excluded_scan(paths, {**why, **record, **error.sidecar}, error.image, grid)
        return False
    except (BrainldmError, MemoryError, OSError):
        raise
    except Exception as error:  # one odd scan must not end the run of forty thousand
        reason = f"{job.shown}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        records.write_excluded_scan(paths, {"Stage": "processing", "Reason": reason, **record}, None, grid)
        return False
    what = f"T1w scan in {SPACE} on the grid {job.options.grid}, intensities 0 to 1"
    records.write_prepared(paths, {"Description": what, **record, **prepared.sidecar}, prepared.image, grid)
    return True
