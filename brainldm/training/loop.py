"""The one training loop, for all stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from brainldm.data.pipeline import iterate
from brainldm.datasets.bids import write_excluded
from brainldm.parallel.distributed import Processes, is_primary
from brainldm.parallel.mesh import shard_batch
from brainldm.parallel.sharding import abstract_like
from brainldm.parallel.stop_vote import StopVote, in_turn
from brainldm.runtime.compiled_programs import quickly_compiled
from brainldm.runtime.console import Progress, log
from brainldm.runtime.errors import Stopped
from brainldm.runtime.files import write_json
from brainldm.runtime.format import format_duration
from brainldm.runtime.profiler import ProfileWindow
from brainldm.runtime.signals import PreemptionHandler, stop_at_once
from brainldm.training.checkpoints import Checkpoints
from brainldm.training.config import validate
from brainldm.training.late_metrics import LateMetrics
from brainldm.training.metrics import MetricWriter, plot_progress
from brainldm.training.stage import EvalResult, LoadedStage, Stage, mesh_of
from brainldm.training.stages import make_stage
from brainldm.training.workdir import (
    announce,
    check_checkpoint,
    check_num_steps,
    check_same_data,
    opened,
    run_metadata,
)

WARM_UP_STEPS = 2
"""Steps after a start that tell nothing of the time that others take: the first waits for the compiler."""


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    stage: Callable[[ml_collections.ConfigDict, Mesh], Stage] = make_stage,
    before_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train the stage that `config` describes in `workdir`, from where it stopped if it was begun there.

    `stage(config, mesh)` makes the stage; `before_step(step)` is called before each step. Raises UserError for an
    impossible config, dataset or work dir (also one that another run works in), Stopped after SIGTERM, SIGUSR1 or
    Ctrl-C with everything saved, and when nothing can be saved any more, FloatingPointError naming the scans of the
    batch when the loss is not finite.
    """
    validate(config)
    workdir = Path(workdir)
    stage = stage(config, mesh_of(config))
    stage.check()
    try:
        with (
            stop_at_once(),
            in_turn(opened(config, workdir)),
            Processes(workdir, config.watchdog_seconds, config.heartbeat_seconds) as processes,
        ):
            loaded = stage.load(workdir)
            check_same_data(loaded, workdir)
            checkpoints = Checkpoints(workdir, config.checkpoints.keep_last, config.checkpoints.keep_every)
            try:
                _loop(config, workdir, stage, loaded, checkpoints, processes, before_step)
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
    loaded: LoadedStage,
    checkpoints: Checkpoints,
    processes: Processes,
    before_step: Callable[[int], None],
) -> None:
    # State
    metadata = run_metadata(config, loaded, stage.mesh)
    state, progress = _initial_state(config, workdir, stage, loaded, checkpoints, metadata)
    start, last, every, primary = int(state.step), config.num_steps, config.every, is_primary()
    if primary:
        # Written only now: a run that could not start leaves no work dir behind.
        write_json(workdir / "config.json", config.to_dict())
        if loaded.excluded:
            write_excluded(workdir / "excluded.tsv", loaded.excluded)
        announce(config, workdir, loaded, state, start)
    writer = MetricWriter(workdir, start, enabled=primary)
    speed = _Speed(config.batch_size)

    # One step
    shardings = jax.tree.map(lambda x: x.sharding, state)
    train_step = jax.jit(stage.train_step, donate_argnums=0, out_shardings=(shardings, None))
    batches = iterate(loaded.train, start, config.data.threads, config.data.prefetch)

    def log_step(step: int, values: dict[str, float]) -> None:
        if due(step, every.log, last):
            writer.write_scalars(step, metrics.means(values))
            writer.write_speed(step, speed.samples_per_second())

    metrics = LateMetrics(loaded.names, progress, log_step)

    def take_step(step: int, state: Any) -> Any:
        before_step(step)
        batch = next(batches)
        scans = batch.pop("index")
        arrays, began = shard_batch(batch, stage.mesh), time.monotonic()
        state, values = train_step(state, arrays, loaded.frozen)
        seconds = time.monotonic() - began
        if step == start + 1 and seconds > 1 and primary:
            log(f"compiled the training step in {format_duration(seconds)}")
        metrics.add(step, values, scans)
        processes.beat(step)
        speed.count()
        return state

    def evaluate(step: int, state: Any) -> None:
        for name, item in loaded.evals.items():
            if due(step, item.every, last):
                metrics.read()
                with processes.paused(f"eval {name}"):
                    result = item.run(state)
                if name == "validation":
                    progress["validation_loss"] = float(result.scalars["loss"])
                if result.scalars:
                    writer.write_scalars(step, result.scalars, name)
                if result.images:
                    writer.optional(lambda result=result: _write_images(result, step, workdir, writer))

    # Loop
    bar = Progress(f"training the {stage.name}", last, start, WARM_UP_STEPS) if primary else _no_bar()
    with contextlib.closing(writer):
        with PreemptionHandler() as request, ProfileWindow(config.profile, workdir, primary) as profile, bar as show:
            vote = StopVote(stage.mesh, request)
            # The order is fixed: train, read, evaluate the new state, save. What is saved has been read and found
            # finite, and holds its own validation, so that a continued run repeats nothing and leaves nothing out.
            for step in range(start + 1, last + 1):
                with profile.step(step):
                    state = take_step(step, state)
                stop = vote.agreed()
                evaluate(step, state)
                if stop or due(step, every.checkpoint, last):
                    metrics.read()
                    checkpoints.save(
                        step, state, progress, {**metadata, "next_batch": step}, ready=writer.require_written
                    )
                profile.after(step, state)
                show(step, _note(speed, progress))
                if stop and step < last:
                    checkpoints.finish()
                    raise Stopped(
                        f"Stopped at step {step} of {last}; the state is saved in {workdir}. The same command goes on "
                        "from there."
                    )
            checkpoints.finish()
    writer.optional(lambda: plot_progress(workdir))


def _initial_state(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stage: Stage,
    loaded: LoadedStage,
    checkpoints: Checkpoints,
    metadata: dict[str, Any],
) -> tuple[Any, dict]:
    """The newest whole checkpoint, or a fresh state made where it will live; and the loop's progress."""
    shapes = jax.eval_shape(loaded.init)
    shardings = stage.state_shardings(shapes)
    step, saved = checkpoints.begin()
    if step is None:
        init = jax.jit(loaded.init, out_shardings=shardings, compiler_options=quickly_compiled())
        return loaded.begin(init()), {"sums": {}, "count": 0}
    check_checkpoint(saved, metadata, workdir / f"checkpoints/{step}")
    check_num_steps(step, config.num_steps, workdir)
    return checkpoints.restore(abstract_like(shapes, shardings), step)


def due(step: int, interval: int, last: int) -> bool:
    """Every `interval` steps and at the end; never for 0."""
    return interval > 0 and (step % interval == 0 or step == last)


def _write_images(result: EvalResult, step: int, workdir: Path, writer: MetricWriter) -> None:
    (workdir / "samples").mkdir(exist_ok=True)
    for name, image in result.images.items():
        image.save(workdir / "samples" / f"{name}_{step:07d}.png")
    writer.write_images(step, {name: np.asarray(image.convert("RGB")) for name, image in result.images.items()})
    plot_progress(workdir)


@contextlib.contextmanager
def _no_bar():
    yield lambda done, note: None


def _note(speed: _Speed, progress: dict[str, Any]) -> str:
    rate, loss = speed.samples_per_second(), progress.get("loss")
    known = (f"{rate:.1f} samples/s" if rate else "", f"loss {loss:.4g}" if loss else "")
    return ", ".join(filter(None, known))


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
