"""The work dir of a training run: who may work in it, what a continuation must agree with, what is said of the run."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
from clu import parameter_overview
from jax.sharding import Mesh

from brainldm import __version__
from brainldm.data.latents import INDEX
from brainldm.parallel.distributed import is_primary
from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json, require_new_folder, write_json
from brainldm.runtime.lock import LOCK, locked
from brainldm.training.inputs import LATENTS
from brainldm.training.restore import from_json
from brainldm.training.run_info import read_run_info
from brainldm.training.stage import LoadedStage

FREE_TO_CHANGE = (
    "every",
    "checkpoints",
    "watchdog_seconds",
    "heartbeat_seconds",
    "profile",
    "num_steps",  # unless the learning rate decays by it
    "mesh",
    "data.path",
    "data.cache_gib",
    "data.cache_dir",
    "data.threads",
    "data.prefetch",
    "latents.path",
    "autoencoder",
    "sampling",
)
"""What may change between the start of a run and its continuation: nothing that a step depends on."""

_OWN = ("config.json", f"{LATENTS}/{INDEX}", LOCK)
"""Files that mark a folder as a work dir. Encoding scans comes before the first step, so a start that was cut off may
have left nothing but latents, or not even them."""


@contextlib.contextmanager
def opened(config: ml_collections.ConfigDict, workdir: Path) -> Iterator[None]:
    """Hold the work dir. Raises UserError when it holds something else, another run works in it, or it was begun with
    another config."""
    require_new_folder(workdir, own=next((name for name in _OWN if (workdir / name).exists()), None))
    with locked(workdir):
        if (workdir / "config.json").exists():
            _check_same_config(read_json(workdir / "config.json"), config.to_dict(), workdir)
        yield


def check_same_data(stage: LoadedStage, workdir: Path) -> None:
    """Raise UserError when a run was begun with other training data: its batches would not be the same.

    Says so when the run is too old to have noted all of what is compared.
    """
    if not (workdir / "run.json").exists():
        return
    before = read_run_info(workdir)
    _check_data(before, stage.run_info, workdir)
    unknown = [what for key, (what, _) in _DATA.items() if stage.run_info.get(key) and not before.get(key)]
    if unknown and is_primary():
        log(
            f"{workdir}: begun by an older brainldm, which noted no hash of {' and '.join(unknown)}: that they are "
            "the same is taken for granted this time, and checked from now on."
        )


def run_metadata(config: ml_collections.ConfigDict, stage: LoadedStage, mesh: Mesh) -> dict[str, Any]:
    """What a checkpoint says of the run that wrote it: its config, its data, and what its sums were made on."""
    return {
        "config": config.to_dict(),
        "scans_training": stage.run_info["scans_training"],
        **{key: stage.run_info.get(key) for key in _DATA},
        "machine": {
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "mesh": ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device",
            "jax": metadata.version("jax"),
        },
    }


def check_checkpoint(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Raise UserError when a checkpoint is of another config or other data; say so when it is of other devices."""
    _check_same_config(saved["config"], now["config"], where)
    _check_data(saved, now, where)
    before, here = saved["machine"], now["machine"]
    changes = [f"{name} {before.get(name)} then, {here[name]} now" for name in here if before.get(name) != here[name]]
    if changes and is_primary():
        log(
            f"{where} was written on another machine ({'; '.join(changes)}). The run goes on from it, but sums are "
            "taken in another order, so from here on its figures are close to those of an undisturbed run, not equal "
            "bit for bit."
        )


def check_num_steps(done: int, num_steps: int, workdir: Path) -> None:
    """Raise UserError when more steps are done than a run is to have."""
    if done > num_steps:
        raise UserError(
            f"{workdir}: {done} steps are done, and config.num_steps={num_steps} asks for fewer. Give {done} or more "
            "to go on. To train for fewer steps, give a new --workdir."
        )


def _check_same_config(old: dict[str, Any], new: dict[str, Any], where: Path) -> None:
    try:
        before, now = _flat(from_json(old).to_dict()), _flat(from_json(new).to_dict())
    except UserError as error:
        raise UserError(f"{where}: {error} Give a new --workdir.") from error
    different = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if different:
        changes = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in different[:5])
        raise UserError(
            f"{where}: this run was begun with another config ({changes}). Go on with the old one, or give a new "
            "--workdir."
        )
    steps, wanted = before["num_steps"], now["num_steps"]
    if now["optimizer.decay"] and steps != wanted:
        raise UserError(
            f"{where}: this run was begun with config.num_steps={steps}, and {wanted} is asked for now. Its learning "
            "rate decays to zero at num_steps (config.optimizer.decay), so the steps that are done would not be those "
            f"of a run of {wanted}. Go on with --config.num_steps={steps}, or give a new --workdir."
        )


_DATA = {
    "scans_sha256": ("the scans", "other scans to train on ({then} then, {now} now)"),
    "images_sha256": ("the images", "other images under the same names of scans"),
    "conditions_sha256": ("the conditions", "other conditions (columns of participants.tsv) of the same scans"),
}
"""What of the data has to stay as it was, by its key in run.json and in checkpoints: its name, and what else it is."""


def _check_data(before: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    for key, (_, message) in _DATA.items():
        if before.get(key) and now.get(key) and before[key] != now[key]:
            what = message.format(then=before.get("scans_training"), now=now.get("scans_training"))
            raise UserError(
                f"{where}: this run was begun with {what}, so its batches would not go on as they were. Bring the "
                "dataset back to what it was, or give a new --workdir."
            )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def announce(config: ml_collections.ConfigDict, workdir: Path, stage: LoadedStage, state: Any, start: int) -> None:
    """Write run.json and say what begins."""
    parameters = int(parameter_overview.count_parameters(state.params))
    began = stage.run_info.get("init_from")
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
            **stage.run_info,
        },
    )
    log(
        f"{config.stage}: {parameters:,} parameters, {stage.run_info['scans_training']} scans to train on and "
        f"{stage.run_info['scans_validation']} held out, {jax.device_count()} x {device.device_kind}, "
        + (f"going on from step {start}" if start else f"beginning with {began['model']}" if began else "from scratch")
        + f", work dir {workdir}"
    )
