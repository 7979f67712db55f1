"""The one training loop, for both stages."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from brainldm.data.pipeline import iterate
from brainldm.datasets.bids import write_excluded
from brainldm.parallel.distributed import Processes, is_primary
from brainldm.parallel.mesh import AXES, check_batch_size, data_only_mesh, make_mesh, shard_batch
from brainldm.parallel.sharding import rules_of
from brainldm.parallel.stop_vote import StopVote, in_turn
from brainldm.runtime.console import Progress
from brainldm.runtime.errors import Stopped
from brainldm.runtime.files import write_json
from brainldm.runtime.signals import PreemptionHandler, stop_at_once
from brainldm.training.checkpoints import Checkpoints, abstract_like
from brainldm.training.config import validate
from brainldm.training.metrics import MetricWriter, plot_progress
from brainldm.training.stages import Stage, make_stage
from brainldm.training.workdir import about_run, announce, check_checkpoint, check_same_scans, opened


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Train the stage that `config` describes in `workdir`, from where it stopped if it was begun there.

    Raises UserError for an impossible config, dataset or work dir (also one that another run works in), Stopped after
    SIGTERM, SIGUSR1 or Ctrl-C with everything saved, and when nothing can be saved any more, FloatingPointError naming
    the scans of the batch when the loss is not finite.
    """
    validate(config)
    workdir = Path(workdir)
    mesh = make_mesh({axis: config.mesh[axis] for axis in AXES})
    rules_of(config.mesh.rules)
    # Only the autoencoder splits volumes.
    check_batch_size(
        config.batch_size // config.accumulation_steps, mesh if config.stage == "autoencoder" else data_only_mesh(mesh)
    )
    try:
        with (
            stop_at_once(),
            in_turn(opened(config, workdir)),
            Processes(workdir, config.watchdog_seconds, config.heartbeat_seconds) as processes,
        ):
            stage = make_stage(config, mesh, workdir)
            check_same_scans(stage, workdir)
            checkpoints = Checkpoints(workdir, config.checkpoints.keep_last, config.checkpoints.keep_every)
            try:
                _loop(config, workdir, stage, checkpoints, processes)
            finally:
                checkpoints.close()
    except KeyboardInterrupt:
        raise Stopped(
            f"Stopped outside of the steps; what {workdir} holds is whole. The same command goes on from there."
        ) from None


def _loop(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stage: Stage,
    checkpoints: Checkpoints,
    processes: Processes,
) -> None:
    state, progress = _initial_state(config, workdir, stage, checkpoints)
    start = int(state.step)
    about = about_run(config, stage)
    primary = is_primary()
    if primary:
        # Written only now: a run that could not start leaves no work dir behind.
        write_json(workdir / "config.json", config.to_dict())
        if stage.excluded:
            write_excluded(workdir / "excluded.tsv", stage.excluded)
        announce(config, workdir, stage, state, start)
    writer = MetricWriter(workdir, start, enabled=primary)
    step_function = jax.jit(
        stage.train_step, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None)
    )
    every = config.every
    batches = iterate(stage.train, start, config.data.threads, config.data.prefetch)
    speed = _Speed(config.batch_size)
    waiting = None  # (step, metrics on the device, scans): read one step late, so the device is never idle

    def read(waiting: tuple[int, Any, np.ndarray] | None) -> None:
        if waiting is None:
            return
        step, metrics, scans = waiting
        metrics = {name: float(value) for name, value in metrics.items()}
        if not all(map(math.isfinite, metrics.values())):
            names = sorted({stage.names[i] for i in scans})
            raise FloatingPointError(
                f"The loss of step {step} is not finite ({metrics}). Nothing was saved after step "
                f"{checkpoints.latest or 0}. The batch held {', '.join(names)}. Look at these scans; if they are "
                "sound, lower config.optimizer.learning_rate or use config.model.dtype='float32'."
            )
        progress["count"] += 1
        for name, value in metrics.items():
            progress["sums"][name] = progress["sums"].get(name, 0.0) + value
        if _due(step, every.log, config.num_steps):
            means = {name: value / progress["count"] for name, value in progress["sums"].items()}
            progress.update(count=0, sums={}, loss=means["loss"])
            writer.write_scalars(step, means)
            writer.write_speed(step, speed.samples_per_second())
            writer.optional(lambda: plot_progress(workdir))

    counting = Progress(f"training the {config.stage}", config.num_steps, start) if primary else _no_counter()
    try:
        with PreemptionHandler() as request, counting as counter:
            vote = StopVote(stage.mesh, request)
            # The order is fixed: train, read, validate the new state, draw, save. What is saved has been read and found
            # finite, and holds its own validation, so that a continued run repeats nothing and leaves nothing out.
            for step in range(start + 1, config.num_steps + 1):
                batch = next(batches)
                scans = batch.pop("index")
                state, metrics = step_function(state, shard_batch(batch, stage.mesh), stage.frozen)
                previous, waiting = waiting, (step, metrics, scans)
                read(previous)
                processes.beat(step)
                speed.count()
                last = step == config.num_steps
                stop = vote.agreed()
                if _due(step, every.validate, config.num_steps):
                    read(waiting)
                    waiting = None
                    with processes.paused("validating"):
                        values = stage.validate(state)
                    progress["validation_loss"] = float(values["loss"])
                    writer.write_scalars(step, values, "validation")
                if _due(step, every.images, config.num_steps):
                    with processes.paused("drawing"):
                        _draw(stage, state, step, workdir, writer)
                if _due(step, every.checkpoint, config.num_steps) or stop:
                    read(waiting)
                    waiting = None
                    checkpoints.save(
                        step,
                        state,
                        progress,
                        {**about, "next_batch": step},
                        ready=writer.require_written,
                    )
                loss = progress.get("loss")
                counter(
                    step,
                    f"{speed.samples_per_second():.1f} samples/s" + (f", loss {loss:.4g}" if loss else ""),
                )
                if stop and not last:
                    checkpoints.finish()
                    raise Stopped(
                        f"Stopped at step {step} of {config.num_steps}; the state is saved in {workdir}. The same "
                        "command goes on from there."
                    )
            checkpoints.finish()
    finally:
        writer.close()
    writer.optional(lambda: plot_progress(workdir))


def _initial_state(
    config: ml_collections.ConfigDict, workdir: Path, stage: Stage, checkpoints: Checkpoints
) -> tuple[Any, dict]:
    """The newest whole checkpoint, or a fresh state made where it will live."""
    shapes = jax.eval_shape(stage.init)
    shardings = stage.shardings(shapes)
    step = checkpoints.begin()
    if step is None:
        return jax.jit(stage.init, out_shardings=shardings)(), {"sums": {}, "count": 0}
    check_checkpoint(checkpoints.about(step), about_run(config, stage), workdir / f"checkpoints/{step}")
    return checkpoints.restore(abstract_like(shapes, shardings), step)


@contextlib.contextmanager
def _no_counter():
    yield lambda done, note: None


def _due(step: int, interval: int, last: int) -> bool:
    """Every `interval` steps and at the end; never for 0."""
    return interval > 0 and (step % interval == 0 or step == last)


def _draw(stage: Stage, state: Any, step: int, workdir: Path, writer: MetricWriter) -> None:
    pictures = stage.pictures(state)

    def write() -> None:
        (workdir / "samples").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            picture.save(workdir / "samples" / f"{name}_{step:07d}.png")
        writer.write_images(step, {name: np.asarray(picture.convert("RGB")) for name, picture in pictures.items()})

    writer.optional(write)


class _Speed:
    """Samples per second since the first step was done, which leaves compilation out."""

    def __init__(self, batch_size: int):
        self._batch_size, self._done, self._since = batch_size, 0, 0.0

    def count(self) -> None:
        if not self._since:
            self._since = time.monotonic()
        else:
            self._done += self._batch_size

    def samples_per_second(self) -> float:
        return self._done / max(time.monotonic() - self._since, 1e-9) if self._done else 0.0
