"""What fits the GPU at hand, by the kept ladder: told at the start of `train` and `generate`. Nothing is changed."""

from __future__ import annotations

import math
from typing import Any

import jax
import ml_collections

from brainldm.planning.ladder import first_fitting, kept_ladder
from brainldm.planning.ladder_report import preset_text
from brainldm.planning.search import largest_rows
from brainldm.runtime.format import format_bytes
from brainldm.training.config import validate
from brainldm.training.flags import load_config
from brainldm.volumes.grids import training_grid
from brainldm.weights.gan_folder import GanSpec
from brainldm.weights.model_folder import ModelSpec

_SAME = ("channels", "num_res_blocks", "dtype")
"""Settings of a model that it has to share with the ladder's for the ladder to tell of it."""


def device_memory() -> float | None:
    """Bytes that programs can use of the first GPU of this process; None without a GPU, or where it does not say."""
    device = jax.local_devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit") if device.platform == "gpu" else None


def training_advice(config: ml_collections.ConfigDict, memory: float | None, devices: int) -> str | None:
    """One line on whether a training step fits in `memory` bytes on each of `devices`, and, if not, what does.

    None where that is not known: without `memory`, for other networks or another precision than the ladder's, for
    split volumes and split states. Raises UserError for an impossible config.
    """
    if memory is None:
        return None
    validate(config)
    mesh, work = config.mesh, kept_ladder()["works"].get(f"train_{config.stage}")
    if work is None:
        return None
    ours = load_config(work["config"], {"data.path": "none"}).model
    same = all(config.model[key] == ours[key] for key in _SAME)
    if not same or mesh.space * mesh.space_y * mesh.fsdp != 1:
        return None
    rows = math.ceil(config.batch_size / config.accumulation_steps / devices)
    volumes = rows * _share_of_full_size(training_grid(config.data.spacing_mm).shape)
    remat = _json(config.model.remat) or False
    needed = _bytes(work["presets"], remat, volumes)
    if needed is None:
        return None
    text = _line("a training step", needed, memory)
    if needed <= memory:
        return text
    fitting = first_fitting(work["presets"], memory)
    fits = f"what fits at full size: {preset_text(fitting)}" if fitting else "none of the presets fits at full size"
    return f"{text} By `brainldm plan --ladder`, {fits}."


def generation_advice(spec: ModelSpec | GanSpec, batch_size: int, memory: float | None) -> str | None:
    """The same for drawing `batch_size` volumes at once with a model."""
    if memory is None or isinstance(spec, GanSpec):
        return None
    work = kept_ladder()["works"]["generate"]
    ours = load_config(work["config"], {"data.path": "none"}).model
    if any(_json(spec.unet.get(key)) != _json(ours[key]) for key in _SAME):
        return None
    share = _share_of_full_size(spec.grid.shape)
    needed = _bytes(work["presets"], None, batch_size * share)
    text = _line(f"drawing {batch_size} at once", needed, memory)
    if needed <= memory:
        return text
    one, two = ((n, _bytes(work["presets"], None, n * share)) for n in (1, 2))
    most = largest_rows(one, two, memory)
    return f"{text} " + (f"--batch-size {most} would." if most else "Nor does one: a GPU with more memory is needed.")


def _line(what: str, needed: float, memory: float) -> str:
    verdict = "fits" if needed <= memory else "will probably not fit"
    return (
        f"memory: {what} takes about {format_bytes(needed)} of the GPU's {format_bytes(memory)} and {verdict} "
        "(estimated from compiled programs)."
    )


def _bytes(presets: list[dict[str, Any]], remat: Any, volumes: float) -> float | None:
    """Bytes that so many volumes of full size at once need on one GPU: a straight line through the presets that keep as
    much for the backward pass as `remat` says, or through one of them and what does not grow. None without any."""
    points = sorted(
        (preset["batch"] / preset["changes"].get("accumulation_steps", 1), preset["bytes"], preset["fixed"])
        for preset in presets
        if preset["devices"] == 1 and (remat is None or preset["changes"].get("model.remat", False) == remat)
    )
    if not points:
        return None
    (rows, most, fixed), (first, least, _) = points[-1], points[0]
    slope = (most - least) / (rows - first) if rows > first else (most - fixed) / rows
    return most + (volumes - rows) * slope


def _share_of_full_size(shape: tuple[int, ...]) -> float:
    return math.prod(shape) / math.prod(training_grid(1).shape)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
