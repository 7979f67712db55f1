"""What a run needs on machines that are not here: memory, operations, collectives, time, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_collections

from brainldm.parallel.mesh import AXES, mesh_shape
from brainldm.planning.chips import Chip, Topology
from brainldm.planning.compiler import Compiler
from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_duration
from brainldm.training.config import validate
from brainldm.training.stages import stage_class
from brainldm.volumes.grids import training_grid

TRIES = 6
"""Changes of a config that are compiled at most, in search of one that fits."""


def make_plan(
    config: ml_collections.ConfigDict,
    target: Topology | int,
    chip: Chip | None,
    *,
    programs: tuple[str, ...],
    utilisation: float,
    search: bool = True,
    full: bool = False,
) -> dict[str, Any]:
    """Compile `programs` of a config for a target and put together what a person needs to know.

    `chip` is what memory and time are held against (None: neither is). `utilisation` is the share of its peak that the
    matrix units are expected to reach. With `search` the largest batch is looked for, and, when the training step does
    not fit, a mesh or rematerialisation with which it does. Raises UserError when the mesh does not fit the target.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.path = config.data.path or "none"  # nothing is read
    validate(config)
    devices = target if isinstance(target, int) else target.devices
    notes: list[str] = []
    batch = _batch(config, devices, notes) if "train" in programs else None
    if not config.get("autoencoder", "its own"):
        notes.append("config.autoencoder is empty: latents are of the shape that the paper's autoencoder gives.")
    plan: dict[str, Any] = {
        "target": f"{devices} virtual devices" if isinstance(target, int) else target.name,
        "chip": vars(chip) if chip else None,
        "utilisation": utilisation,
        "stage": config.stage,
        "perceptual": config.loss.get("perceptual"),
        "programs": {},
        "notes": notes,
    }
    with Compiler(config, target) as compiler:
        plan |= {"devices": compiler.devices, "kind": compiler.kind}
        for name in programs:
            log(f"plan: compiling {name} for {plan['target']}")
            result = compiler.run(name, batch if name == "train" else None, full=full)
            plan["programs"][name] = add_verdict(result, chip, utilisation)
            log(f"plan: {name} compiled in {format_duration(result['seconds'])}")
        if search and "train" in programs:
            step = plan["programs"]["train"]
            if step["fits"] is False:
                plan["suggestion"] = _fitting(compiler, config, step, chip, utilisation, full, plan)
            elif chip:
                plan["largest"] = _largest(compiler, step, {}, chip, full)
    step = plan["programs"].get("train")
    if step and step.get("step_seconds"):
        rows = config.num_steps * config.batch_size
        plan["run_seconds"] = rows / step["batch"] * step["step_seconds"]
    return plan


def _batch(config: ml_collections.ConfigDict, devices: int, notes: list[str]) -> int:
    """The batch size to plan with: the config's, or the nearest that can be split evenly."""
    sizes = dict(zip(AXES, mesh_shape({axis: config.mesh[axis] for axis in AXES}, devices), strict=True))
    shards = sizes["data"] * sizes["fsdp"] if stage_class(config).splits_volumes else devices
    unit = shards * config.accumulation_steps
    if config.batch_size % unit == 0:
        return config.batch_size
    batch = max(unit, round(config.batch_size / unit) * unit)
    notes.append(
        f"config.batch_size {config.batch_size} cannot be split evenly over {shards} shards"
        + (f" and {config.accumulation_steps} microbatches" if config.accumulation_steps > 1 else "")
        + f"; planned with {batch}."
    )
    return batch


def add_verdict(result: dict[str, Any], chip: Chip | None, utilisation: float) -> dict[str, Any]:
    """Add to a compiler's answer whether it fits a chip and how long one run of it takes there.

    step_seconds is the larger of the arithmetic at `utilisation` of the peak and the memory traffic at full bandwidth,
    plus the collectives at full bandwidth, as if they never overlapped with anything.
    """
    result = dict(result)
    if chip is None:
        return result
    if result["memory"]:
        result["fits"] = result["fits"] is not False and result["memory"]["total"] <= chip.memory
    counted = None if result.get("loops", True) else result.get("operations")
    operations = max(counted or 0.0, result["arithmetic"] / result["devices"])
    peak = chip.peak * (chip.float32_share if result["dtype"] == "float32" else 1.0)
    times = {"arithmetic": operations / (utilisation * peak)}
    if result.get("bytes") and not result["loops"]:
        times["memory"] = result["bytes"] / chip.memory_bandwidth
    if result.get("collectives") is not None:
        times["collectives"] = sum(item["sent"] for item in result["collectives"]) / chip.link_bandwidth
    result["times"] = times
    result["step_seconds"] = max(times["arithmetic"], times.get("memory", 0.0)) + times.get("collectives", 0.0)
    return result


def largest_rows(first: tuple[int, float], second: tuple[int, float], memory: float) -> int:
    """The most rows for which a straight line through two (rows, bytes) stays within `memory`."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    if slope <= 0:
        return second[0] if second[1] <= memory else 0
    return max(0, math.floor((memory - first[1]) / slope + first[0]))


def _largest(
    compiler: Compiler, step: dict[str, Any], changes: dict[str, Any], chip: Chip, full: bool
) -> dict[str, Any] | None:
    """The largest batch, from a second compilation with twice the rows."""
    log("plan: compiling the training step with twice the batch, to see how memory grows")
    double = compiler.run("train", 2 * step["batch"], changes, full)
    if not (step["memory"] and double["memory"]):
        return None
    unit = step["shards"] * step["accumulation_steps"]
    points = [(item["batch"] // unit, item["memory"]["total"]) for item in (step, double)]
    rows = largest_rows(*points, chip.memory)
    per_row = (points[1][1] - points[0][1]) / (points[1][0] - points[0][0])
    return {"batch": rows * unit, "per_device": rows, "bytes_per_row": per_row, "bytes_at_double": points[1][1]}


def candidates(config: ml_collections.ConfigDict, devices: int, sides: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Changes that make a training step smaller, the cheapest first.

    `sides` are the first two of the volume at the deepest level, which the shards of space have to divide.
    """
    remat = {} if config.model.remat else {"model.remat": True}
    if config.batch_size > devices * config.accumulation_steps:
        yield {"accumulation_steps": config.batch_size // devices}
    if remat:
        yield remat
    if not stage_class(config).splits_volumes:
        for rules in ("zero1", "fsdp"):
            yield {"mesh.data": -1, "mesh.fsdp": min(devices, 8), "mesh.rules": rules, **remat}
        return
    splits = [
        (x, y)
        for x in range(1, sides[0] + 1)
        for y in range(1, sides[1] + 1)
        if sides[0] % x == 0 and sides[1] % y == 0 and devices % (x * y) == 0 and x * y > 1 and x >= y
    ]
    seen = set()
    for x, y in sorted(splits, key=lambda split: (split[0] * split[1], split[1])):
        if x * y not in seen:
            seen.add(x * y)
            yield {"mesh.data": -1, "mesh.space": x, "mesh.space_y": y, **remat}


def _fitting(
    compiler: Compiler,
    config: ml_collections.ConfigDict,
    step: dict[str, Any],
    chip: Chip,
    utilisation: float,
    full: bool,
    plan: dict[str, Any],
) -> dict[str, Any] | None:
    """The first change with which the training step fits, compiled; None when none of those tried does."""
    halvings = max(len(config.model.channels) - 1, config.get("discriminator", {}).get("num_layers", 0))
    sides = tuple(side // 2**halvings for side in training_grid(config.data.spacing_mm).shape[:2])
    plan["tried"] = []
    for number, changes in enumerate(candidates(config, compiler.devices, sides)):
        if number == TRIES:
            break
        split = changes.get("mesh.space", 1) * changes.get("mesh.space_y", 1)
        batch = step["batch"]
        if split > 1:
            shards = compiler.devices // split * config.accumulation_steps
            batch = max(shards, config.batch_size // shards * shards)
        log(f"plan: does not fit; trying {flags(changes, batch)}")
        try:
            result = add_verdict(compiler.run("train", batch, changes, full), chip, utilisation)
        except UserError as error:
            log(f"plan: {error}")
            continue
        plan["tried"].append({"changes": changes, "batch": batch, "fits": result["fits"], "memory": result["memory"]})
        if result["fits"]:
            largest = _largest(compiler, result, changes, chip, full)
            return {"changes": changes, "step": result, "largest": largest, "flags": flags(changes, batch)}
    return None


def flags(changes: dict[str, Any], batch: int) -> str:
    """The changes as a person writes them."""
    return " ".join(f"--config.{key}={value}" for key, value in {**changes, "batch_size": batch}.items())
