"""Compiles programs for devices that this machine does not have, in a process of its own.

`python -m brainldm.planning.worker` reads one JSON object a line: first the target and the config, then jobs. It
answers each with one JSON object a line. What devices there are is decided when JAX starts, hence the process.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from brainldm.parallel.mesh import AXES, check_batch_size, num_batch_shards
from brainldm.planning.arithmetic import operations
from brainldm.planning.hlo import read_traffic
from brainldm.planning.memory_traffic import memory_traffic
from brainldm.runtime.errors import UserError
from brainldm.training.restore import from_json
from brainldm.training.stage import Program, mesh_of
from brainldm.training.stages import make_stage

# Time spent on making the program fast. The least: a compilation takes a tenth of the time, and what is read from it
# (memory, operations, collectives) is nearly the same.
_QUICK = {"exec_time_optimization_effort": -1.0}

# What `jax.lax.platform_dependent` calls the devices that call themselves otherwise.
_LOWERED_FOR = {"gpu": "cuda"}

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT])"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")


def devices_of(target: dict[str, Any]) -> list[Any]:
    """The devices of a topology (which cannot hold arrays), or the virtual ones of this process."""
    if not target.get("topology"):
        return jax.devices()
    if target.get("gpu"):
        try:
            return topologies.get_topology_desc(
                platform="cuda", topology=target["topology"], target_config=target["gpu"]
            ).devices
        except Exception as error:  # of JAX, where the plug-in is of another version, or of the plug-in
            said = " ".join(str(error).split())
            raise UserError(
                f"The CUDA plug-in of JAX is installed and cannot be used for planning: {said} Its version has to be "
                f"that of JAX ({jax.__version__}): pip install --upgrade 'brainldm[plan-gpu]'."
            ) from error
    try:
        return topologies.get_topology_desc(
            topology_name=target["topology"], platform="tpu", chips_per_host_bounds=target["chips_per_host"]
        ).devices
    except Exception as error:  # the plug-in raises several kinds
        raise UserError(f"libtpu cannot describe {target['topology']}: {' '.join(str(error).split())}") from error


def changed(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """A copy with some keys, as "mesh.space", set to other values."""
    config = config.copy_and_resolve_references()
    with config.ignore_type():  # model.remat is a bool or a tuple
        for key, value in changes.items():
            config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
    return config


def compile_program(config: ml_collections.ConfigDict, devices: list[Any], job: dict[str, Any]) -> dict[str, Any]:
    """Compile one program and say what it needs.

    job: {"program": name, "batch": rows or None, "changes": {key: value}, "full": bool, "devices": how many of them or
    None}. Bytes and operations are of one device, but "arithmetic", which is of all together. "memory" is None where it
    did not fit and the compiler told no more than that.
    """
    config, devices = changed(config, job.get("changes", {})), devices[: job.get("devices")]
    stage = make_stage(config, mesh_of(config, devices))
    name, platform = job["program"], devices[0].platform
    mesh = stage.mesh if name in ("train", "sample", "generate") else stage.volume_mesh
    steps = config.accumulation_steps if name == "train" else 1
    if name == "train" and job.get("batch"):
        check_batch_size(job["batch"] // steps, mesh)
    if name == "generate" and "generate" not in stage.program_names:
        program = generation(stage, job.get("batch"))
    else:
        program = stage.program(name, job.get("batch"))
    answer: dict[str, Any] = {
        "program": name,
        "batch": program.batch,
        "shards": num_batch_shards(mesh),
        "mesh": {axis: mesh.shape[axis] for axis in AXES},
        "devices": len(devices),
        "accumulation_steps": steps,
        "remat": config.model.remat,
        "dtype": config.model.dtype,
        "rules": config.mesh.rules,
        "state_bytes": sum(_local_bytes(leaf) for leaf in jax.tree.leaves(program.state)),
        "gradient_bytes": sum(map(_local_bytes, jax.tree.leaves(getattr(program.state, "params", None)))),
        "arithmetic": operations(program.function, *program.arguments, platform=_LOWERED_FOR.get(platform, platform)),
    }
    begun = time.monotonic()
    options = {} if program.out_shardings is None else {"out_shardings": program.out_shardings}
    lowered = jax.jit(program.function, donate_argnums=program.donate, **options).lower(*program.arguments)
    try:
        compiled = lowered.compile(compiler_options=None if job.get("full") or platform != "tpu" else _QUICK)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        given = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(program.arguments))
        needed = too_large(str(error), given)
        return answer | {"fits": False, "seconds": time.monotonic() - begun, **needed}
    return answer | {"fits": None, "seconds": time.monotonic() - begun} | _read(compiled, len(devices))


def generation(stage: Any, batch: int | None) -> Program:
    """From conditions to volumes with the networks of a diffusion stage, as one program: what `generate` runs."""
    sampling = stage.program("sample", batch)
    decoding = stage.program("decode", sampling.batch)

    def generate(params: Any, condition: jax.Array, keys: jax.Array, autoencoder: Any) -> jax.Array:
        return decoding.function(autoencoder, sampling.function(params, condition, keys))

    states = (sampling.state, decoding.state)
    return Program(generate, (*sampling.arguments, decoding.state), sampling.batch, states)


def too_large(message: str, arguments: float) -> dict[str, Any]:
    """Memory needed and its limit, from what the TPU's compiler says about a program that does not fit.

    It names either everything or what the program needs beside its `arguments` (bytes).
    """
    used, temporaries = _USED.search(message), _TEMPORARIES.search(message)
    found = used or temporaries
    if not found:
        return {"memory": None, "limit": None}
    needed, limit = (float(found.group(i)) * _UNITS[found.group(i + 1)] for i in (1, 3))
    return {"memory": {"total": needed + (0 if used else arguments)}, "limit": limit}


def _local_bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for side in shape:
        size *= side
    return size


def _read(compiled: Any, devices: int) -> dict[str, Any]:
    stats = compiled.memory_analysis()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    text = compiled.as_text()
    traffic, moved = read_traffic(text, devices), memory_traffic(text)
    memory["workspace"] = moved.largest_convolution
    compilers = None if traffic.loops else cost.get("bytes accessed")  # which count the body of a loop once
    return {
        "memory": {**memory, "total": sum(memory.values())},
        "operations": cost.get("flops"),
        "bytes": compilers or moved.bytes,
        "loops": traffic.loops,
        "collectives": [vars(item) for item in traffic.collectives],
        "roofline_seconds": cost.get("optimal_seconds"),
        "product_cycles": moved.product_cycles,
        "other_bytes": moved.other_bytes,
    }


def main() -> None:
    """Answer jobs until the input ends."""
    # Whatever a library prints goes to standard error; the answers have standard output to themselves.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def answer(content: dict[str, Any]) -> None:
            answers.write(json.dumps(content) + "\n")
            answers.flush()

        devices = config = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if devices is None:
                    devices, config = devices_of(request["target"]), from_json(request["config"])
                    kind = getattr(devices[0], "device_kind", devices[0].platform)
                    answer({"devices": len(devices), "kind": kind})
                else:
                    answer(compile_program(config, devices, request))
            except UserError as error:
                answer({"error": str(error), "user": True})
            except Exception as error:  # told to the parent, which decides
                answer({"error": f"{type(error).__name__}: {str(error)[:2000]}", "user": False})


if __name__ == "__main__":
    main()
