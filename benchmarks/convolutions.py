"""Time the ways of a convolution on a CPU, and write the table from which the networks choose.

    python -m benchmarks.convolutions

Some minutes on an idle machine. `--clock processor` counts processor seconds, which other work disturbs less; they say
nothing about how well a way divides over cores unless the program has one core to run on.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from functools import partial
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from brainldm.models import convolution_cpu

TABLE = Path(convolution_cpu.__file__).with_name("convolution_table.json")
SAME = ((1, 1),) * 3
# (batch, depth, height, width): (inputs, features) of the networks' convolutions of size 3: the paper's, the demo's.
CASES = {
    (1, 5, 7, 5): [(64, 64), (128, 128), (256, 256), (512, 512), (768, 768), (1536, 768)],
    (1, 10, 14, 10): [(8, 64), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512), (1024, 512)],
    (8, 10, 14, 10): [(12, 32), (32, 8), (128, 32)],
    (1, 20, 28, 20): [
        *((7, 256), (256, 3), (3, 128), (128, 3), (8, 8), (16, 16), (32, 32), (64, 64)),
        *((16, 64), (64, 16), (128, 128), (128, 1024), (256, 256), (512, 256)),
    ],
    (1, 40, 56, 40): [(1, 8), (8, 1), (1, 64), (64, 1), (8, 8), (16, 16), (32, 32), (64, 64), (128, 64), (128, 128)],
    (1, 80, 112, 80): [(1, 64), (64, 1), (8, 8), (16, 16), (64, 64)],
}
ENOUGH = 0.2  # seconds in which a way is run anew, and its least time kept
FEW = 16  # features above which "taps", made for few, is not tried


def measure(kind, shape, inputs, features, clock):
    """Seconds of each way of one case, without those that take more than 2 GiB."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*shape, inputs)), jnp.float32)
    other = (3, 3, 3, inputs, features) if kind == "forward" else (*shape, features)
    other = jnp.asarray(rng.standard_normal(other), jnp.float32)
    ways = convolution_cpu.FORWARD
    if kind == "kernel_gradient":
        ways = {
            name: lambda x, dy, padding, way=way: way(x, dy, (3, 3, 3), padding)
            for name, way in convolution_cpu.KERNEL_GRADIENT.items()
        }
    seconds = {}
    for name, way in ways.items():
        if name == "taps" and features > FEW:
            continue
        program = jax.jit(partial(way, padding=SAME)).lower(x, other).compile()
        if program.memory_analysis().temp_size_in_bytes > 2**31:
            continue
        jax.block_until_ready(program(x, other))
        spent = []
        while len(spent) < 2 or (sum(spent) < ENOUGH and len(spent) < 20):
            start = clock()
            jax.block_until_ready(program(x, other))
            spent.append(clock() - start)
            if seconds and spent[-1] > 3 * min(seconds.values()):
                break
        seconds[name] = float(f"{min(spent):.3g}")
    return seconds


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TABLE, help="where to write the table (default: the package's)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--most-gflop", type=float, default=200.0, help="leave out larger cases")
    options = parser.parse_args(arguments)
    clock = {"wall": time.perf_counter, "processor": time.process_time}[options.clock]
    table = {
        "measured_on": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "clock": options.clock,
            "jaxlib": importlib.metadata.version("jaxlib"),
        },
        "forward": [],
        "kernel_gradient": [],
    }
    for shape, channels in CASES.items():
        for inputs, features in channels:
            voxels, operations = prod(shape), 54e-9 * prod(shape) * inputs * features
            if operations > options.most_gflop:
                continue
            for kind in ("forward", "kernel_gradient"):
                seconds = measure(kind, shape, inputs, features, clock)
                table[kind].append({"voxels": voxels, "inputs": inputs, "features": features, "seconds": seconds})
                best = min(seconds, key=seconds.get)
                rate = operations / seconds[best]
                print(
                    f"{kind:16} {voxels:7} {inputs:5} {features:5}  {best:15} {rate:5.0f} GFLOP/s  {seconds}",
                    flush=True,
                )
    rows = {kind: ",\n  ".join(map(json.dumps, table.pop(kind))) for kind in ("forward", "kernel_gradient")}
    lists = "".join(f',\n "{kind}": [\n  {text}\n ]' for kind, text in rows.items())
    options.out.write_text(json.dumps(table)[:-1] + lists + "}\n")


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
