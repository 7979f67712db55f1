"""Which share of a job a process does, by a flag or by what the scheduler says: no process talks to another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from brainldm.runtime.errors import UserError

Shard = tuple[int, int]
"""(i, n): the i-th of n shares, from 1."""

WHOLE: Shard = (1, 1)


class _Source(NamedTuple):
    """Variables of a scheduler: the number of a task, what the first one has or where that is said, the last, the step,
    and how many there are."""

    scheduler: str
    index: str
    first: int | str
    last: str = ""
    step: str = ""
    count: str = ""


_SOURCES = (
    _Source(
        "SLURM array", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"
    ),
    _Source("SLURM step", "SLURM_PROCID", 0, count="SLURM_NTASKS"),
    _Source("Kubernetes indexed job", "JOB_COMPLETION_INDEX", 0),
    _Source("PBS array", "PBS_ARRAY_INDEX", 1),
    _Source("Grid Engine array", "SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    _Source("LSF array", "LSB_JOBINDEX", 1),
    _Source("TPU worker", "TPU_WORKER_ID", 0, count="TPU_WORKER_HOSTNAMES"),
)


def parse_shard(text: str) -> Shard:
    """ "3/40" -> (3, 40). Raises UserError for anything else."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--shard {text!r}: two numbers are wanted, as 3/40 for the third of forty.")
    shard = int(parts[0]), int(parts[1])
    check_shard(shard)
    return shard


def check_shard(shard: Shard) -> None:
    """Raise UserError for a share that there is not."""
    if not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: the shards are 1/{shard[1]} to {shard[1]}/{shard[1]}.")


def shard_suffix(shard: Shard) -> str:
    """What names of files that a share has for itself end with: nothing for the whole, else "-3-of-40"."""
    return "" if shard[1] == 1 else f"-{shard[0]}-of-{shard[1]}"


def shard_from_environment(count: int, environment: Mapping[str, str] | None = None) -> tuple[Shard, str]:
    """The share of this process among `count`, and the variable that says so.

    Raises UserError when no scheduler says a number, two say different ones, the number is out of range, or the tasks
    of an array are not as many as the shares: then which share is whose cannot be known.
    """
    environment = os.environ if environment is None else environment
    found = {source.index: number for source in _SOURCES if (number := _number(source, count, environment)) is not None}
    if not found:
        raise UserError(
            f"--shards {count}: nothing here says which of them this is (looked for "
            f"{', '.join(source.index for source in _SOURCES)}). Give --shard i/{count}."
        )
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} says {number}" for name, number in found.items())
        raise UserError(f"--shards {count}: {said}. Give --shard i/{count}.")
    name, number = next(iter(found.items()))
    if not 1 <= number <= count:
        raise UserError(
            f"--shards {count}: {name}={environment[name]} is none of them. Start {count} tasks, or give "
            f"--shard i/{count}."
        )
    return (number, count), name


def _number(source: _Source, count: int, environment: Mapping[str, str]) -> int | None:
    """The number that a scheduler gives this process, from 1; None when it gives none."""
    index = _whole(environment.get(source.index))
    if index is None or (source.index == "LSB_JOBINDEX" and index == 0):  # LSF outside of an array
        return None
    if source.count:
        tasks = _count(environment.get(source.count))
        if tasks == 1:  # every batch job of SLURM has a step of one task
            return None
        _check_tasks(source, count, tasks)
    if isinstance(source.first, int):
        return index - source.first + 1
    first, last = (_whole(environment.get(name)) for name in (source.first, source.last))
    step = _whole(environment.get(source.step)) or 1
    if first is None or last is None:
        return None
    _check_tasks(source, count, (last - first) // step + 1)
    return (index - first) // step + 1


def _check_tasks(source: _Source, count: int, tasks: int | None) -> None:
    if tasks is not None and tasks != count:
        raise UserError(
            f"--shards {count}: the {source.scheduler} has {tasks} tasks, so which share {source.index} means cannot "
            f"be known. Start {count} tasks, or give --shard i/{count} with i made from {source.index}."
        )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _count(text: str | None) -> int | None:
    """A number, or the length of a list of names."""
    return _whole(text) or (len(text.split(",")) if text else None)
