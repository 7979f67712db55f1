"""Which of the processes of a run this one is, as far as a person or an environment says it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from brainldm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Launch:
    """Where this process belongs: the address of process 0 ("HOST:PORT"), how many there are and which this one is.

    None throughout: the launcher knows (SLURM, Open MPI, Kubernetes, a Cloud TPU VM), and JAX asks it.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def launch_of(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str] | None = None,
) -> Launch:
    """The launch that flags describe, or where they are None the environment variables JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises UserError when some but not all of the three are given, or one is impossible.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {
        "--coordinator": coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        "--num-processes": environment.get("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
        "--process-id": environment.get("JAX_PROCESS_ID") if process_id is None else process_id,
    }
    absent = [name for name, value in values.items() if value is None]
    if len(absent) == 3 or (len(absent) == 2 and coordinator is None and values["--coordinator"]):
        return Launch(values["--coordinator"])
    if absent:
        given = ", ".join(name for name, value in values.items() if value is not None)
        raise UserError(f"{given} without {', '.join(absent)}: all three of {', '.join(values)} are wanted, or none.")
    address, count, index = values.values()
    if not re.fullmatch(r"\S+:\d+", address):
        raise UserError(f"--coordinator is {address!r}; HOST:PORT is wanted, the address of process 0 and a free port.")
    try:
        count, index = int(count), int(index)
    except ValueError as error:
        raise UserError(f"--num-processes {count!r}, --process-id {index!r}: whole numbers are wanted.") from error
    if not 0 <= index < count:
        raise UserError(f"--process-id is {index}; with --num-processes {count} it runs from 0 to {count - 1}.")
    return Launch(address, count, index)
