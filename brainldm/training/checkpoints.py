"""Checkpoints of a training run. The only room that knows orbax."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from brainldm.errors import UserError

Tree = Any


class Checkpoints:
    """The checkpoints of one work dir: the last two and the one with the lowest validation loss.

    Saving is asynchronous and atomic; `close` waits for it.
    """

    def __init__(self, workdir: str | Path):
        # Orbax logs every phase of every save; its errors are raised.
        logging.getLogger("absl").setLevel(logging.ERROR)
        policies = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            (Path(workdir) / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["loss"],
                best_mode="min",
                # A policy, because best_fn with max_to_keep would delete the newest step.
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(2),
                        policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1),
                    ]
                ),
            ),
        )

    @property
    def latest(self) -> int | None:
        """The newest step saved."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree, progress: dict, validation_loss: float | None) -> None:
        """Save `state` and the loop's own JSON `progress` as step `step`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)),
            # A step that was never validated cannot be the best, and the policy wants a number to compare.
            metrics={"loss": math.inf if validation_loss is None else validation_loss},
        )

    def restore(self, abstract: Tree, step: int | None = None) -> tuple[Tree, dict]:
        """The state of `step` (None: the newest) in the shapes, types and shardings of `abstract`, and the progress.

        Raises UserError when there is no checkpoint or it does not fit.
        """
        step = self.latest if step is None else step
        if step is None:
            raise UserError(f"{self._manager.directory}: no checkpoint in it. Train first.")
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()),
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"{self._manager.directory}/{step}: cannot be restored with this config ({_first_line(error)}). "
                "Was it written by another model? Use the config that the work dir was made with."
            ) from error
        return restored["state"], restored["progress"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_like(state: Tree, shardings: Tree) -> Tree:
    """Shapes and types of `state` (arrays or shapes), placed by `shardings`: one for all, or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, state)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
