"""Which way of a convolution is the quickest on a CPU: what was measured, and a rule for what was not.

`convolution_table.json` is written by `python -m benchmarks.convolutions`.
"""

import functools
import json
from collections.abc import Collection
from importlib.resources import files
from math import log2


@functools.cache
def table() -> dict[str, list[dict]]:
    """For each kind ("forward", "kernel_gradient") the measured cases: "voxels" (batch x depth x height x width),
    "inputs" and "features" (channels), and "seconds" of each way.
    """
    return json.loads(files(__package__).joinpath("convolution_table.json").read_text())


def quickest(kind: str, ways: Collection[str], voxels: int, inputs: int, features: int) -> str:
    """The one of `ways` that took the least time in the nearest case that was measured, "planes" if none of the others
    is a fifth quicker: it compiles the soonest, and times differ that much between machines.

    Near is the distance between the logarithms of voxels, inputs and features: twice as many of either is one step.
    """

    def distance(case):
        measured = (case["voxels"], case["inputs"], case["features"])
        return sum(log2(a / b) ** 2 for a, b in zip(measured, (voxels, inputs, features), strict=True))

    seconds = min(table()[kind], key=distance)["seconds"]
    return min(ways, key=lambda way: seconds.get(way, float("inf")) * (1.0 if way == "planes" else 1.2))
