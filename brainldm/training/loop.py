"""The one training loop, for both stages."""

from __future__ import annotations

import math
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview

from brainldm import __version__
from brainldm.console import Counter, say
from brainldm.data.bids import write_excluded
from brainldm.data.latents import INDEX
from brainldm.data.pipeline import iterate
from brainldm.errors import Stopped, UserError
from brainldm.files import read_json, require_new_folder, write_json
from brainldm.interrupts import StopRequest
from brainldm.parallel.mesh import AXES, check_batch_size, make_mesh, shard_batch, without_space
from brainldm.parallel.rules import rules_of
from brainldm.training.checkpoints import Checkpoints, abstract_like
from brainldm.training.config import validate
from brainldm.training.inputs import LATENTS
from brainldm.training.metrics import MetricWriter, plot_progress
from brainldm.training.stages import Stage, from_json, make_stage

# What may change between the start of a run and its continuation: nothing that a step depends on.
_FREE_TO_CHANGE = (
    "every",
    "mesh.",
    "num_steps",
    "data.path",
    "data.cache_gib",
    "data.cache_dir",
    "data.threads",
    "data.prefetch",
    "latents.path",
    "autoencoder",
    "sampling",
)


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Train the stage that `config` describes in `workdir`, from where it stopped if it was begun there.

    Raises UserError for an impossible config, dataset or work dir, Stopped after SIGTERM or Ctrl-C (with
    everything saved), FloatingPointError naming the scans of the batch when the loss is not finite.
    """
    validate(config)
    # Encoding scans comes before the first step, so a work dir may hold nothing but the latents of a start cut off.
    begun = (Path(workdir) / LATENTS / INDEX).exists()
    workdir = require_new_folder(workdir, own=f"{LATENTS}/{INDEX}" if begun else "config.json")
    mesh = make_mesh({axis: config.mesh[axis] for axis in AXES})
    rules_of(config.mesh.rules)
    # Only the autoencoder splits volumes.
    check_batch_size(
        config.batch_size // config.accumulation_steps, mesh if config.stage == "autoencoder" else without_space(mesh)
    )
    _check_same_config(config, workdir)
    stage = make_stage(config, mesh, workdir)
    _check_same_scans(stage, workdir)
    # Written only now: a run that could not start leaves no work dir behind.
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())
    if stage.excluded:
        write_excluded(workdir / "excluded.tsv", stage.excluded)
    checkpoints = Checkpoints(workdir)
    try:
        _loop(config, workdir, stage, checkpoints)
    finally:
        checkpoints.close()


def _loop(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stage: Stage,
    checkpoints: Checkpoints,
) -> None:
    state, progress = _initial_state(stage, checkpoints)
    start = int(state.step)
    _announce(config, workdir, stage, state, start)
    writer = MetricWriter(workdir, start)
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
            plot_progress(workdir)

    try:
        with StopRequest() as stop, Counter(f"training the {config.stage}", config.num_steps, start) as counter:
            # The order is fixed: train, read, validate the new state, draw, save. What is saved has been read and found
            # finite, and holds its own validation, so that a continued run repeats nothing and leaves nothing out.
            for step in range(start + 1, config.num_steps + 1):
                batch = next(batches)
                scans = batch.pop("index")
                state, metrics = step_function(state, shard_batch(batch, stage.mesh), stage.frozen)
                previous, waiting = waiting, (step, metrics, scans)
                read(previous)
                speed.count()
                last = step == config.num_steps
                if _due(step, every.validate, config.num_steps):
                    read(waiting)
                    waiting = None
                    values = stage.validate(state)
                    progress["validation_loss"] = float(values["loss"])
                    writer.write_scalars(step, values, "validation")
                if _due(step, every.images, config.num_steps):
                    _draw(stage, state, step, workdir, writer)
                if _due(step, every.checkpoint, config.num_steps) or stop.requested:
                    read(waiting)
                    waiting = None
                    checkpoints.save(step, state, progress, progress.get("validation_loss"))
                loss = progress.get("loss")
                counter(
                    step,
                    f"{speed.samples_per_second():.1f} samples/s" + (f", loss {loss:.4g}" if loss else ""),
                )
                if stop.requested and not last:
                    raise Stopped(
                        f"Stopped at step {step} of {config.num_steps}; the state is saved in {workdir}. The same "
                        "command goes on from there."
                    )
    finally:
        writer.close()
    plot_progress(workdir)


def _initial_state(stage: Stage, checkpoints: Checkpoints) -> tuple[Any, dict]:
    """The newest checkpoint, or a fresh state made where it will live."""
    shapes = jax.eval_shape(stage.init)
    shardings = stage.shardings(shapes)
    if checkpoints.latest is not None:
        return checkpoints.restore(abstract_like(shapes, shardings))
    return jax.jit(stage.init, out_shardings=shardings)(), {"sums": {}, "count": 0}


def _due(step: int, interval: int, last: int) -> bool:
    """Every `interval` steps and at the end; never for 0."""
    return interval > 0 and (step % interval == 0 or step == last)


def _draw(stage: Stage, state: Any, step: int, workdir: Path, writer: MetricWriter) -> None:
    (workdir / "samples").mkdir(exist_ok=True)
    pictures = stage.pictures(state)
    for name, picture in pictures.items():
        picture.save(workdir / "samples" / f"{name}_{step:07d}.png")
    writer.write_images(step, {name: np.asarray(picture.convert("RGB")) for name, picture in pictures.items()})


def _check_same_config(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raise UserError when a work dir was begun with settings that a step depends on and that differ now."""
    if not (workdir / "config.json").exists():
        return
    old = _flat(from_json(read_json(workdir / "config.json")).to_dict())
    new = _flat(config.to_dict())
    different = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE_TO_CHANGE)
    ]
    if different:
        changes = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in different[:5])
        raise UserError(
            f"{workdir}: this run was begun with another config ({changes}). Go on with the old one, or give a new "
            "--workdir."
        )


def _check_same_scans(stage: Stage, workdir: Path) -> None:
    """Raise UserError when a run was begun with other training scans: its batches would not be the same."""
    if not (workdir / "run.json").exists():
        return
    before, now = read_json(workdir / "run.json").get("scans_sha256"), stage.facts.get("scans_sha256")
    if before and now and before != now:
        raise UserError(
            f"{workdir}: this run was begun with other scans to train on (there are {len(stage.names)} now), so its "
            "batches would not go on as they were. Bring the dataset back to what it was, or give a new --workdir."
        )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _announce(config: ml_collections.ConfigDict, workdir: Path, stage: Stage, state: Any, start: int) -> None:
    parameters = int(parameter_overview.count_parameters(state.params))
    versions = {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")}
    device = jax.devices()[0]
    write_json(
        workdir / "run.json",
        {
            "brainldm": __version__,
            "versions": versions,
            "python": platform.python_version(),
            "command": sys.argv,
            "device": f"{jax.device_count()} x {device.device_kind}",
            "platform": device.platform,
            "parameters": parameters,
            "resumed_from_step": start,
            **stage.facts,
        },
    )
    say(
        f"{config.stage}: {parameters:,} parameters, {stage.facts['scans_training']} scans to train on and "
        f"{stage.facts['scans_validation']} held out, {jax.device_count()} x {device.device_kind}, "
        + (f"going on from step {start}" if start else "from scratch")
        + f", work dir {workdir}"
    )


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
