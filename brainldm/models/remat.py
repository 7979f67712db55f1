"""Rematerialisation: what the backward pass computes again in place of keeping it."""

from __future__ import annotations

from collections.abc import Sequence


def remat_at(level: int, remat: bool | Sequence[int]) -> bool:
    """Whether the blocks of a level are recomputed in the backward pass.

    Args:
        remat: True for all levels, False for none, or the levels. Level 0 has the full resolution, and by far the
            largest activations.
    """
    return remat if isinstance(remat, bool) else level in remat
