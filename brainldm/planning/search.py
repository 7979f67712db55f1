"""The largest batch that fits a chip, and the first change of a config with which a step fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from brainldm.planning.chips import Chip
from brainldm.planning.compiler import Compiler
from brainldm.planning.times import add_verdict
from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError
from brainldm.training.stage_autoencoder import volume_halvings
from brainldm.training.stages import stage_class
from brainldm.volumes.grids import training_grid

TRIES = 6
"""Changes of a config that are compiled at most, in search of one that fits."""

COMPILATIONS = 8
"""Batches that are compiled at most, in search of the largest that fits."""

Point = tuple[int, float]
"""Rows of a batch and the bytes that they need."""


def largest_rows(first: Point, second: Point, memory: float) -> int:
    """The most rows for which a straight line through two points stays within `memory`."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    if slope <= 0:
        return second[0] if second[1] <= memory else 0
    return max(0, math.floor((memory - first[1]) / slope + first[0]))


def search_rows(needs: Callable[[int], float | None], memory: float, start: int = 1) -> tuple[int, dict[int, float]]:
    """The most rows that fit in `memory`, and the bytes of all that were asked for.

    `needs(rows)` compiles and tells the bytes (None: more than there is). Each guess lies on the straight line through
    the nearest two batches, or in the middle where the line leads to what is known not to fit. The answer itself was
    compiled and fits. 0: `start` does not fit.
    """
    known: dict[int, float] = {}
    fits, too_many, guess = 0, math.inf, start
    while len(known) < COMPILATIONS:
        known[guess] = needed = needs(guess) or math.inf
        fits, too_many = (max(fits, guess), too_many) if needed <= memory else (fits, min(too_many, guess))
        if fits == 0 or too_many - fits <= 1:
            break
        finite = sorted((rows for rows in known if known[rows] < math.inf), key=lambda rows: abs(rows - fits))[:2]
        line = [(rows, known[rows]) for rows in sorted(finite)]
        wanted = largest_rows(*line, memory) if len(line) == 2 else 2 * fits
        if wanted <= fits and too_many == math.inf:
            break  # the line says that one more does not fit
        guess = max(wanted, fits + 1) if wanted < too_many else int(fits + too_many) // 2
    return fits, known


def largest_batch(
    compiler: Compiler, step: dict[str, Any], changes: dict[str, Any], chip: Chip, full: bool
) -> dict[str, Any] | None:
    """The largest batch of a compiled program, from a second compilation with twice the rows; None without figures."""
    log(f"plan: compiling {step['program']} with twice the batch, to see how memory grows")
    double = compiler.run(step["program"], 2 * step["batch"], changes, full)
    if not (step["memory"] and double["memory"]):
        return None
    unit = step["shards"] * step["accumulation_steps"]
    points = [(item["batch"] // unit, item["memory"]["total"]) for item in (step, double)]
    rows = largest_rows(*points, chip.memory)
    per_row = (points[1][1] - points[0][1]) / (points[1][0] - points[0][0])
    return {"batch": rows * unit, "per_device": rows, "bytes_per_row": per_row, "bytes_at_double": points[1][1]}


def compiled_largest_batch(compiler: Compiler, step: dict[str, Any], chip: Chip, full: bool) -> dict[str, Any]:
    """The largest batch of a compiled program that was compiled itself and fits.

    "batch" is 0 where one row a shard does not.
    """
    unit, name = step["shards"] * step["accumulation_steps"], step["program"]

    def needs(rows: int) -> float | None:
        if rows * unit == step["batch"] and step["memory"]:
            return step["memory"]["total"]
        log(f"plan: compiling {name} with batch {rows * unit}")
        memory = compiler.run(name, rows * unit, {}, full)["memory"]
        return memory and memory["total"]

    rows, known = search_rows(needs, chip.memory)
    some = sorted((n, size) for n, size in known.items() if size < math.inf)
    per_row = (some[-1][1] - some[0][1]) / (some[-1][0] - some[0][0]) if len(some) > 1 else None
    return {"batch": rows * unit, "per_device": rows, "bytes_per_row": per_row}


def candidates(config: ml_collections.ConfigDict, devices: int, sides: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Changes that make a training step smaller, the cheapest first.

    `sides` are the first two of the volume at the deepest level, which the shards of space have to divide.
    """
    remat = {} if config.model.remat is True else {"model.remat": True}
    if config.batch_size > devices * config.accumulation_steps:
        yield {"accumulation_steps": config.batch_size // devices}
    if not config.model.remat:
        yield {"model.remat": (0,)}
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


def fitting_change(
    compiler: Compiler,
    config: ml_collections.ConfigDict,
    step: dict[str, Any],
    chip: Chip,
    utilisation: float,
    full: bool,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The first change with which the training step fits, compiled (None when none of those tried does), and all that
    were tried."""
    halvings = volume_halvings(config) if stage_class(config).splits_volumes else 0
    sides = tuple(side // 2**halvings for side in training_grid(config.data.spacing_mm).shape[:2])
    tried: list[dict[str, Any]] = []
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
        tried.append({"changes": changes, "batch": batch, "fits": result["fits"], "memory": result["memory"]})
        if result["fits"]:
            largest = largest_batch(compiler, result, changes, chip, full)
            found = {"changes": changes, "step": result, "largest": largest, "flags": flags(changes, batch)}
            return found, tried
    return None, tried


def flags(changes: dict[str, Any], batch: int | None = None) -> str:
    """The changes as a person writes them."""
    values = changes if batch is None else {**changes, "batch_size": batch}
    return " ".join(f"--config.{key}={_written(value)}" for key, value in values.items())


def _written(value: Any) -> str:
    """A value for a command line; in a shell a tuple needs quotes."""
    return f"'{value}'" if isinstance(value, tuple) else str(value)
