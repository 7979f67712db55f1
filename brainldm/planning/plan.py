"""What a run needs on machines that are not here: memory, operations, collectives, time, and what to change."""

from __future__ import annotations

from typing import Any

import ml_collections

from brainldm.parallel.mesh import AXES, mesh_shape
from brainldm.planning.chips import Chip
from brainldm.planning.compiler import Compiler, Target
from brainldm.planning.gpus import PER_HOST, Gpus
from brainldm.planning.search import compiled_largest_batch, fitting_change, largest_batch
from brainldm.planning.times import add_verdict
from brainldm.runtime.console import log
from brainldm.runtime.format import format_duration
from brainldm.training.config import validate
from brainldm.training.stages import stage_class


def make_plan(
    config: ml_collections.ConfigDict,
    target: Target,
    chip: Chip | None,
    *,
    programs: tuple[str, ...],
    utilisation: float,
    search: bool = True,
    largest: bool = False,
    full: bool = False,
) -> dict[str, Any]:
    """Compile `programs` of a config for a target and put together what a person needs to know.

    `chip` is what memory and time are held against (None: neither is). `utilisation` is the share of its peak that the
    matrix units are expected to reach. With `search` the largest batch of the training step is looked for, and, when
    it does not fit, a mesh or rematerialisation with which it does; with `largest` the largest batch of every program,
    compiled. Raises UserError when the mesh does not fit the target.
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
    if isinstance(target, Gpus):
        notes.append("compiled without cuDNN: `workspace` allows for its copies of the largest convolution's arrays.")
        if devices > PER_HOST:
            notes.append(f"more than {PER_HOST} GPUs: the network between machines is not in the time of collectives.")
    plan: dict[str, Any] = {
        "target": f"{devices} virtual devices" if isinstance(target, int) else target.name,
        "chip": vars(chip) if chip else None,
        "utilisation": utilisation,
        "stage": config.stage,
        "perceptual": config.get("loss", {}).get("perceptual"),
        "programs": {},
        "notes": notes,
    }
    with Compiler(config, target) as compiler:
        plan |= {"devices": compiler.devices, "kind": compiler.kind}
        for name in programs:
            log(f"plan: compiling {name} for {plan['target']}")
            result = compiler.run(name, batch if name == "train" else None, full=full)
            plan["programs"][name] = add_verdict({**result, "full": full}, chip, utilisation)
            log(f"plan: {name} compiled in {format_duration(result['seconds'])}")
        if largest and chip:
            plan["largest_batches"] = {
                name: compiled_largest_batch(compiler, result, chip, full) for name, result in plan["programs"].items()
            }
        elif search and "train" in programs:
            step = plan["programs"]["train"]
            if step["fits"] is False:
                found = fitting_change(compiler, config, step, chip, utilisation, full)
                plan["suggestion"], plan["tried"] = found
            elif chip:
                plan["largest"] = largest_batch(compiler, step, {}, chip, full)
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
