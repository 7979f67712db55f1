"""The ladder of memory: what runs the paper's networks at full size on GPUs of 8 to 141 GB, and how long."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from brainldm.planning.chips import GB, GPU_SHARE, find_chip
from brainldm.planning.compiler import Compiler
from brainldm.planning.gpus import GPUS, PER_HOST, Gpus
from brainldm.planning.search import flags
from brainldm.planning.times import add_verdict
from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.training.flags import load_config

RUNGS = (8, 12, 16, 24, 40, 80, 141)
"""Memory of the GPUs, in GB as they are sold."""

VOLUMES = 1000
"""What a table of generation is for; training is for the steps of the published recipe."""

KEPT = Path(__file__).with_name("ladder.json")
"""The ladder that `brainldm plan --ladder --json` made, which `train` and `generate` look things up in."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """One way to run a program: the GPUs it takes, its batch, and what of the config is changed."""

    devices: int
    batch: int
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Work:
    """A program of a packaged config, and presets from the fastest to the smallest."""

    config: str
    program: str
    presets: tuple[Preset, ...]


def _space(devices: int, **changes: Any) -> Preset:
    return Preset(devices, 1, {"mesh.space": devices, **changes})


def _fsdp(devices: int, **changes: Any) -> Preset:
    return Preset(devices, 4, {"mesh.fsdp": devices, "mesh.data": 1, "mesh.rules": "fsdp", **changes})


_REMAT = "model.remat"

WORKS = {
    "generate": Work("paper_ldm", "generate", (Preset(1, 4), Preset(1, 1))),
    "train_autoencoder": Work(
        "paper_autoencoder",
        "train",
        (
            *(Preset(1, 1), Preset(1, 1, {_REMAT: (0,)}), Preset(1, 1, {_REMAT: True})),
            *(_space(2), _space(2, **{_REMAT: (0,)}), _space(4), _space(4, **{_REMAT: (0,)})),
        ),
    ),
    "train_diffusion": Work(
        "paper_ldm",
        "train",
        (
            *(Preset(1, 4), Preset(1, 4, {"accumulation_steps": 4})),
            Preset(1, 4, {"accumulation_steps": 4, _REMAT: True}),
            *(_fsdp(2), _fsdp(2, accumulation_steps=2), _fsdp(4)),
        ),
    ),
}
"""What the ladder is about, all in bfloat16 with the batch sizes of the published recipe."""


def usable(gigabytes: float) -> float:
    """Bytes that a program can use of a GPU that is sold with so many GB."""
    return GPU_SHARE * gigabytes * GB


def make_ladder(
    chip: str, utilisation: float, rungs: Sequence[int] = RUNGS, works: dict[str, Work] = WORKS
) -> dict[str, Any]:
    """Compile the presets of every work for one chip until one fits the smallest rung.

    A preset: what it changes, the bytes it needs on a device (and those of them that do not grow with the batch), the
    operations and the traffic, and seconds of a step on this chip, at least and expected. Memory differs little between
    GPUs, time a lot. Raises UserError for a chip that is no GPU.
    """
    found = find_chip(chip)
    if found.name not in GPUS:
        raise UserError(f"--chip {chip}: the ladder is one of GPUs, {', '.join(GPUS)}.")
    ladder: dict[str, Any] = {
        "chip": found.name,
        "utilisation": utilisation,
        "date": datetime.date.today().isoformat(),
        "jax": metadata.version("jax"),
        "rungs": list(rungs),
        "works": {},
    }
    for name, work in works.items():
        config = load_config(work.config, {"data.path": "none"})
        with Compiler(config, Gpus(found, PER_HOST)) as compiler:
            presets: list[dict[str, Any]] = []
            for preset in work.presets:
                log(f"plan: compiling {name} {flags(preset.changes, preset.batch)} for {preset.devices} x {chip}")
                changes = {**preset.changes, "batch_size": preset.batch}
                result = compiler.run(work.program, preset.batch, changes, devices=preset.devices)
                presets.append(_entry(preset, add_verdict(result, found, utilisation)))
                if presets[-1]["bytes"] <= usable(min(rungs)):
                    break
        rows = config.num_steps * config.batch_size if work.program == "train" else VOLUMES
        ladder["works"][name] = {"config": work.config, "program": work.program, "rows": rows, "presets": presets}
    return ladder


def _entry(preset: Preset, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "devices": preset.devices,
        "batch": preset.batch,
        "changes": preset.changes,
        "bytes": result["memory"]["total"],
        "fixed": result["state_bytes"] + result["gradient_bytes"],
        "operations": result["arithmetic"] / result["devices"],
        "moved": result["bytes"],
        "at_least": result["bound_seconds"],
        "expected": result["step_seconds"],
    }


def first_fitting(presets: Sequence[dict[str, Any]], memory: float) -> dict[str, Any] | None:
    """The first preset that needs no more than `memory` bytes on a device."""
    return next((preset for preset in presets if preset["bytes"] <= memory), None)


def kept_ladder() -> dict[str, Any]:
    """The ladder that belongs to this version of the networks."""
    return json.loads(KEPT.read_text(encoding="utf-8"))
