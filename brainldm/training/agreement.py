"""What the processes of a run decide together, so that all of them do the same at the same step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brainldm.errors import BrainldmError
from brainldm.interrupts import StopRequest


def first_process() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def in_turn(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enter `context` in the first process alone. When that raises, all processes raise."""
    if jax.process_count() == 1:
        with context:
            yield
        return
    with contextlib.ExitStack() as stack:
        error = None
        if first_process():
            try:
                stack.enter_context(context)
            except BaseException as raised:
                error = raised
        failed = bool(multihost_utils.broadcast_one_to_all(np.int32(error is not None)))
        if error is not None:
            raise error
        if failed:
            raise BrainldmError("Process 0 could not begin; its message says why.")
        yield


class StopVote:
    """Whether any process was told to stop, asked once a step: the answer is the same in all processes.

    With several processes it is the answer to the step before, so that no device waits for it.
    """

    def __init__(self, mesh: Mesh, request: StopRequest):
        self._request = request
        self._wishes: jax.Array | None = None
        self._several = jax.process_count() > 1
        if self._several:
            self._sharding = NamedSharding(mesh, P(mesh.axis_names))
            self._size = mesh.size
            self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

    def agreed(self) -> bool:
        """Whether to stop at this step."""
        if not self._several:
            return self._request.requested
        wish = np.full(1, self._request.requested, np.int32)
        votes = jax.make_array_from_callback((self._size,), self._sharding, lambda index: wish)
        before, self._wishes = self._wishes, self._any(votes)
        return before is not None and bool(before)
