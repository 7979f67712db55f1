"""What the processes of a run decide together, so that all of them do the same at the same step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brainldm.parallel.distributed import from_primary
from brainldm.runtime.signals import PreemptionHandler


@contextlib.contextmanager
def in_turn(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enter `context` in process 0 alone. When that raises UserError, all processes raise it."""
    with contextlib.ExitStack() as stack:
        from_primary(lambda: stack.enter_context(context) and None)
        yield


class StopVote:
    """Whether any process was told to stop, asked once a step: the answer is the same in all processes.

    With several processes it is the answer to the step before, so that no device waits for it.
    """

    def __init__(self, mesh: Mesh, request: PreemptionHandler):
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
