"""Checkpoints of a training run. The only room that knows orbax; checkpoint_folder.py knows the folder."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from brainldm.parallel.distributed import from_primary, is_primary
from brainldm.runtime import checkpoint_folder
from brainldm.runtime.console import log
from brainldm.runtime.errors import BrainldmError, Stopped, UserError, first_line
from brainldm.runtime.files import read_json

Tree = Any

ATTEMPTS = 3
"""Failed saves in a row after which a run ends."""

_TOLERATED = (OSError, ValueError, RuntimeError)  # what Orbax raises when a disk is full or a file server away


class Checkpoints:
    """The checkpoints of one work dir: the last `keep_last`, every `keep_every`th step and the best one.

    Reading changes nothing in the folder, so it may go on beside a run that writes. A run that writes calls `begin`
    first, which clears up after a kill. Saving is asynchronous: `save` returns when the state is copied off the
    devices. A step counts once it is whole on disk with the SHA-256 of every file (checkpoint_folder.py), which is
    checked before a step is read. With several processes, all of them call every method, in the same order.
    """

    def __init__(self, workdir: str | Path, keep_last: int = 2, keep_every: int = 0):
        # Orbax logs every phase of every save, and errors with their traces; errors are raised as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._folder = (Path(workdir) / "checkpoints").absolute()
        self._keep_last, self._keep_every = keep_last, keep_every
        self._losses: dict[int, float | None] = {}
        self._checked: set[int] = set()
        self._writer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._pending: int | None = None
        self._error: BaseException | None = None
        self._failures = 0
        self._report = ""
        self._metadata: dict[int, dict] = {}

    @property
    def latest(self) -> int | None:
        """The newest finished step, as it is on disk now."""
        return max(checkpoint_folder.finished_steps(self._folder), default=None)

    def begin(self) -> tuple[int | None, dict]:
        """The newest whole step, to go on from, and its metadata; (None, {}) when there is none.

        Deletes what a killed save left, and puts damaged steps aside, so that their numbers are free again. Raises
        BrainldmError when there are steps and none is whole.
        """
        step, damaged = self._newest_whole()
        if is_primary():
            checkpoint_folder.remove_unfinished(self._folder)
            for number in damaged:
                kept = checkpoint_folder.set_aside(self._folder, number)
                log(f"It is kept as {kept}; delete it when you do not need it.")
            self._losses = {number: self._loss_of(number) for number in checkpoint_folder.finished_steps(self._folder)}
        return step, {} if step is None else self.metadata(step)

    def save(
        self,
        step: int,
        state: Tree,
        progress: dict,
        metadata: dict | None = None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to save `state` as step `step`, with the loop's own JSON `progress` and `metadata` of the run.

        The best step is the one with the lowest progress["validation_loss"]. `ready` is called first, in process 0,
        and may raise OSError when what belongs to the step is not on disk: it counts as a failed save.
        A failed save is a warning, given when the next one begins; the ATTEMPTSth in a row raises Stopped.
        """
        self.wait()
        self._pending = step
        args = {
            # A copy, because it is written while the loop goes on adding to its sums.
            "progress": ocp.args.JsonSave(copy.deepcopy(progress)),
            "about": ocp.args.JsonSave({**(metadata or {}), "shapes": shapes_of(state)}),
            **{name: ocp.args.StandardSave(item) for name, item in _items(state).items()},
        }
        try:
            self._writer = self._writer or ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self._writer.save(checkpoint_folder.unfinished_path(self._folder, step), args=ocp.args.Composite(**args))
            if is_primary():
                ready()
        except _TOLERATED as error:
            self._error = error
        loss = progress.get("validation_loss")
        self._thread = threading.Thread(target=self._finish, args=(step, loss), name="checkpoint", daemon=True)
        self._thread.start()

    def _finish(self, step: int, loss: float | None) -> None:
        """In a thread: wait for Orbax, make the step count, delete what need not be kept."""
        try:
            self._writer.wait_until_finished()
            if self._error is not None or not is_primary():
                return
            checkpoint_folder.finish(self._folder, step)
        except BaseException as error:  # reported by `wait`, in the main thread
            self._error = error
            return
        self._losses[step] = loss
        for old in checkpoint_folder.superfluous(self._losses, self._keep_last, self._keep_every):
            del self._losses[old]
            try:
                checkpoint_folder.remove(self._folder, old)
            except OSError as error:
                log(f"{self._folder / str(old)}: cannot be deleted ({error.strerror}).")

    def wait(self) -> bool:
        """Wait for the save under way; whether it did well. Raises Stopped after ATTEMPTS failures in a row."""
        if self._pending is None:
            return True
        self._thread.join()
        step, error = self._pending, self._error
        self._thread = self._pending = self._error = None
        if not _anywhere(error is not None):
            self._failures = 0
            return True
        if error is not None and not isinstance(error, _TOLERATED):
            raise error
        self._failures += 1
        self._writer = None  # a new one has no memory of the failure
        if is_primary():
            checkpoint_folder.remove_unfinished(self._folder)
        self._report = (
            f"Step {step} could not be saved ({first_line(error) if error else 'in another process'}). {self._newest()}"
        )
        if self._failures >= ATTEMPTS:
            raise Stopped(
                f"{self._report} {ATTEMPTS} saves in a row failed, so the run ends. Make room (or repair the disk); "
                "the same command then goes on from the finished step."
            )
        if is_primary():
            log(f"Warning: {self._report} Training goes on and tries again with the next checkpoint.")
        return False

    def finish(self) -> None:
        """Wait for the save under way. Raises Stopped when it failed."""
        if not self.wait():
            raise Stopped(f"{self._report} Make room (or repair the disk); the same command then goes on from there.")

    def metadata(self, step: int) -> dict:
        """The metadata of the run when `step` was saved, with the shape of every array under "shapes"."""
        if step not in self._metadata:
            self._metadata[step] = self._read(step, about=ocp.args.JsonRestore())["about"]
        return self._metadata[step]

    def restore(self, abstract: Tree, step: int | None = None) -> tuple[Tree, dict]:
        """The state of `step` (None: the newest whole one) in the shapes, types and shardings of `abstract`, and the
        progress.

        Where `abstract` holds numpy arrays (whose values do not matter) the state holds numpy arrays. The devices may
        be others, and in another order, than those that saved it. Raises UserError when there is no checkpoint or it
        does not fit (naming what differs), BrainldmError when a file of it is not as it was written.
        """
        if step is None:
            step, _ = self._newest_whole()
        elif step not in self._metadata and (damage := from_primary(lambda: self._damage(step))):
            raise BrainldmError(f"{self._folder / str(step)} is damaged ({damage}).")
        if step is None:
            raise UserError(f"{self._folder}: no checkpoint in it. Train first.")
        differences = _differences(self.metadata(step)["shapes"], shapes_of(abstract))
        if differences:
            raise UserError(
                f"{self._folder / str(step)} was written by another model: {'; '.join(differences[:5])}"
                + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
                + ". Use the config that the work dir was made with."
            )
        items = _items(abstract)
        arguments = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        try:
            restored = self._read(step, progress=ocp.args.JsonRestore(), **arguments)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"{self._folder / str(step)}: cannot be restored with this config ({first_line(error)}). "
                "Was it written by another model? Use the config that the work dir was made with."
            ) from error
        return _joined({name: restored[name] for name in items}), restored["progress"]

    def close(self) -> None:
        """Wait until everything is on disk, after a run that ends otherwise than by `finish`."""
        if self._pending is not None:
            self._thread.join()
            if self._error is not None:
                log(f"Warning: step {self._pending} could not be saved ({first_line(self._error)}). {self._newest()}")
                if is_primary():
                    checkpoint_folder.remove_unfinished(self._folder)
            self._pending = self._thread = self._error = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _read(self, step: int, **arguments: Any) -> Any:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(self._folder / str(step), args=ocp.args.Composite(**arguments))

    def _loss_of(self, step: int) -> float | None:
        # by the file, because only process 0 asks, and Orbax reads with all of them
        try:
            return read_json(self._folder / str(step) / "progress/metadata").get("validation_loss")
        except UserError:
            return None  # damaged: not the best

    def _damage(self, step: int) -> str | None:
        if step in self._checked:
            return None
        damage = checkpoint_folder.find_damage(self._folder, step)
        if damage is None:
            self._checked.add(step)
        return damage

    def _newest_whole(self) -> tuple[int | None, list[int]]:
        """The newest step with all files as they were written, and the damaged ones after it (in process 0)."""
        damaged: dict[int, str] = {}

        def search() -> int | None:
            for step in reversed(checkpoint_folder.finished_steps(self._folder)):
                damage = self._damage(step)
                if damage is None:
                    return step
                damaged[step] = damage
            if damaged:
                listed = "; ".join(f"{step} ({damage})" for step, damage in damaged.items())
                raise BrainldmError(
                    f"{self._folder}: no step is whole: {listed}. Bring a step back from a copy. To start again from "
                    "nothing, delete the folder."
                )
            return None

        found = from_primary(search)
        for step, damage in damaged.items():
            then = f"falling back to step {found}, the one before that is whole"
            log(f"{self._folder / str(step)} is damaged ({damage}) and is not used; {then}.")
        return found, list(damaged)

    def _newest(self) -> str:
        step = self.latest
        return "No step is finished yet." if step is None else f"The newest finished step is {step}."


def shapes_of(state: Tree) -> dict[str, str]:
    """The type and shape of every array of a state by its path: {"params/conv/kernel": "float32 3x3x3x1x8"}."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype} {'x'.join(map(str, x.shape)) or 'scalar'}"
        for path, x in leaves
    }


def _differences(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return [
        f"{name} is {saved.get(name, 'not there')} in it, {wanted.get(name, 'not there')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]


def _items(state: Tree) -> dict[str, Tree]:
    """The items of a checkpoint: the moving average, which alone is sampled from, and all the rest."""
    if getattr(state, "ema", None) is None:
        return {"state": state}
    return {"state": state.replace(ema=None), "ema": state.ema}


def _joined(items: dict[str, Tree]) -> Tree:
    return items["state"].replace(ema=items["ema"]) if "ema" in items else items["state"]


def _anywhere(flag: bool) -> bool:
    """Whether `flag` is set in any process."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.int32(flag))))
