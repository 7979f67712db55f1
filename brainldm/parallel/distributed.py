"""Several processes, on one host or many, that train together: how they start, agree, wait for each other and end.

What they say to each other goes two ways. Numbers that all must agree on travel by collective operations of JAX.
Heartbeats and exit reports are files in the work dir, which all processes share (see heartbeats.py): they work when a
collective operation is what hangs.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from brainldm.parallel.launch import Launch
from brainldm.runtime.console import log
from brainldm.runtime.errors import BrainldmError, PeerLost, Stopped, UserError, first_line
from brainldm.runtime.format import format_duration
from brainldm.runtime.heartbeats import BEAT_SECONDS, HeartbeatFolder
from brainldm.runtime.supervisor import supervised, tell_supervisor
from brainldm.runtime.watchdog import AGAIN, Watchdog

FOLDER = "processes"
"""Folder in a work dir where the processes of a run tell each other how they are."""

SECONDS_TO_MEET = 600.0
"""How long a process waits for the others before it says who is missing."""

_MESSAGE_BYTES = 8192
# What errors of collective operations look like when the other side is gone.
_LOST_LINK = re.compile(r"gloo|nccl|connection|peer|socket|unavailable|coordination|heartbeat|deadline", re.IGNORECASE)


def start(launch: Launch, heartbeat_seconds: float = 90, connect_seconds: int = 300) -> None:
    """Join the processes of the run. To be called before anything touches a device.

    Raises UserError when the launch says nothing and no launcher is recognised. When the others cannot be reached
    within `connect_seconds`, JAX aborts the process, and its supervisor says why.
    """
    who = "This process" if launch.num_processes is None else f"Process {launch.process_id} of {launch.num_processes}"
    tell_supervisor(
        f"{who} did not find all others within {connect_seconds} s. Are all of them started, with the same number of "
        f"processes, and can this host reach {launch.coordinator or 'that of process 0'}?"
    )
    # The handler of SIGTERM that JAX would install swallows the signal. Ours is signals.py, and they agree by `any`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.num_processes,
            launch.process_id,
            initialization_timeout=connect_seconds,
            # JAX ends a process by aborting it. Ours comes first and says why.
            heartbeat_timeout_seconds=max(60, round(3 * heartbeat_seconds or 300)),
        )
    except (ValueError, TypeError, KeyError) as error:
        if launch.process_id is not None:
            raise
        raise UserError(
            f"--distributed: no launcher that says which process this is was recognised ({error}). SLURM, Open MPI, "
            "Kubernetes and Cloud TPU VMs are. Elsewhere give --coordinator HOST:PORT --num-processes N --process-id I "
            "to each process (or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); to train with "
            "one process leave --distributed out."
        ) from error


def is_primary() -> bool:
    """Whether this process writes what one process writes: metrics, tables, images."""
    return jax.process_index() == 0


def whole(array: jax.Array) -> np.ndarray:
    """An array on the host, all of it, in all processes that call this together."""
    if array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return multihost_utils.process_allgather(array, tiled=True)


def from_primary(function: Callable[[], Any]) -> Any:
    """What `function` returns in process 0 (JSON), in all processes; only process 0 calls it.

    When it raises, all raise: a UserError as it is, anything else as BrainldmError in those that did not call it.
    """
    if jax.process_count() == 1:
        return function()
    answer, failure = {}, None
    if is_primary():
        try:
            answer = {"value": function()}
        except BaseException as error:
            failure = error
            kind = "error" if isinstance(error, UserError) else "failure"
            answer = {kind: f"{error or type(error).__name__}"[: _MESSAGE_BYTES // 8]}
    content = np.frombuffer(json.dumps(answer).encode().ljust(_MESSAGE_BYTES), np.uint8)
    answer = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(content), np.uint8)))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise UserError(answer["error"])
    if "failure" in answer:
        raise BrainldmError(f"Process 0 failed: {answer['failure']}")
    return answer["value"]


class Processes:
    """The processes of one run on `workdir`, with a watchdog that keeps each from hanging. Use as a context manager.

    `watchdog_seconds` and `heartbeat_seconds` are the limits of Watchdog. With several processes a failure of this one
    ends it at once, after a word to the others: a normal exit would wait for them.
    """

    def __init__(self, workdir: str | Path, watchdog_seconds: float, heartbeat_seconds: float):
        self.index, self.count = jax.process_index(), jax.process_count()
        self.heartbeats: HeartbeatFolder | None = None
        folder = Path(workdir).absolute() / FOLDER
        if self.count > 1:
            # A name of its own for every start: nothing that an earlier one left is taken for news.
            name = from_primary(lambda: _new_folder(folder))
            # Enough signs of life within the limit that one which comes late is not taken for silence.
            interval = min(BEAT_SECONDS, heartbeat_seconds / 20) or BEAT_SECONDS
            self.heartbeats = HeartbeatFolder(folder / name, self.index, self.count, interval)
            tell_supervisor(self.heartbeats)
        self.watchdog = Watchdog(
            watchdog_seconds, folder / f"stacks_{self.index}.txt", self.heartbeats, heartbeat_seconds, supervised()
        )

    def __enter__(self) -> Processes:
        self.watchdog.__enter__()
        try:
            self.barrier("start")
        except PeerLost as error:
            self._leave(error)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and self.count > 1:
            self._leave(error)
        self.watchdog.__exit__(kind, error, trace)

    def beat(self, step: int) -> None:
        """A step was completed."""
        self.watchdog.beat(step)

    def paused(self, doing: str) -> AbstractContextManager[None]:
        """Inside the `with`, no steps are expected."""
        return self.watchdog.paused(doing)

    def barrier(self, name: str, seconds: float = SECONDS_TO_MEET) -> None:
        """Wait until all processes have come to the barrier `name`, which is used once.

        Raises PeerLost naming those that have not come within `seconds`.
        """
        if self.heartbeats is None:
            return
        missing = meet(self.heartbeats, name, seconds)
        if missing:
            names = ", ".join(self.heartbeats.describe(process) for process in missing)
            raise PeerLost(
                f"{len(missing)} of {self.count} processes did not come to {name!r} within {format_duration(seconds)}: "
                f"{names}. {AGAIN}"
            )

    def _leave(self, error: BaseException) -> None:
        """End with a last line and a word to the others; return only when all end alike."""
        heartbeats = self.heartbeats
        if isinstance(error, Stopped) and not meet(heartbeats, "stopped", 60):
            return
        if isinstance(error, KeyboardInterrupt):
            error = Stopped(f"it was told to stop outside of the steps. {AGAIN}")
        code = getattr(error, "exit_code", 1)
        if not isinstance(error, BrainldmError | FloatingPointError):
            traceback.print_exception(error)
            if _LOST_LINK.search(str(error)):
                # The others' exit reports are on their way, and the watchdog ends this process when they come.
                time.sleep(5 * heartbeats.interval)
                code = PeerLost.exit_code
                error = f"it lost its link to another process ({first_line(error)}). {AGAIN}"
            else:
                error = f"{type(error).__name__}: {first_line(error)}"
        heartbeats.report_exit(str(error), code)
        heartbeats.wait_for_readers()
        log(f"brainldm: process {self.index} of {self.count} ends: {error}")
        os._exit(code)


def meet(heartbeats: HeartbeatFolder, name: str, seconds: float) -> list[int]:
    """Come to a barrier and wait for the others; returns those that have not come within `seconds`."""
    heartbeats.arrive(name)
    until, pause = time.monotonic() + seconds, 0.05
    while (missing := heartbeats.missing(name)) and time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    return missing


def _new_folder(folder: Path) -> str:
    for old in folder.glob("*/"):  # the stacks of a run that hung stay beside them
        shutil.rmtree(old, ignore_errors=True)
    name = secrets.token_hex(4)
    (folder / name).mkdir(parents=True)
    return name
