"""Averages of parameters over training whose length is chosen afterwards (Karras et al. 2024, arXiv 2312.02696).

A power-function average of exponent gamma weights the parameters of step tau, seen from step t, by

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),    0 <= tau <= t

(their eq. 1 and section 3.1). Its length is the standard deviation of p relative to t, with
length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Two such averages are kept in training and written now and then;
the sum of these snapshots whose weight function is nearest, in the mean square, to that of any other average stands
for it (section 3.2, algorithm 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import SUMS, read_sums, verify_sums, write_atomically, write_sums
from brainldm.weights.parameter_files import flatten

LENGTHS = {"short": 0.05, "long": 0.10}
"""The averages that are kept, by name, and their lengths: those of the paper."""
LENGTH_RANGE = (0.01, 0.25)
WORST_FIT = 0.1
"""Largest distance of a weight function from the one that is asked for, relative to it, that passes."""
AVERAGES = "averages"
"""Folder of the snapshots in a work dir."""
_FILE = "averages.safetensors"


def exponent(length: float) -> float:
    """gamma of an average of a length between 0 and 12^-1/2 = 0.289, its standard deviation over the training time."""
    if not 0 < length < 12**-0.5:
        raise ValueError(f"the length of an average is {length}; it lies between 0 and 0.288")
    # length^2 (gamma + 2)^2 (gamma + 3) = gamma + 1, in g = gamma + 2: g^3 + g^2 - g / length^2 + 1 / length^2 = 0
    inverse = length**-2
    roots = np.roots([1.0, 1.0, -inverse, inverse])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-9])) - 2.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """The weight function of the average of exponent `gamma` at step `t`."""

    gamma: float
    t: float

    def product(self, other: Profile) -> float:
        """The integral of the product of both weight functions over training time (section C.2).

        Of the larger time nothing but its ratio to the smaller one matters, so that large powers stay finite.
        """
        first, last = (self, other) if self.t <= other.t else (other, self)
        total = self.gamma + other.gamma + 1
        return (first.gamma + 1) * (last.gamma + 1) / total * (first.t / last.t) ** last.gamma / last.t


def coefficients(snapshots: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Factors [n] of snapshots whose sum has the weight function nearest to `wanted`, and how far off it is.

    That is the norm of the difference over the norm of the wanted function; 0 is exact.
    """
    products = np.array([[one.product(other) for other in snapshots] for one in snapshots])
    aims = np.array([one.product(wanted) for one in snapshots])
    # Snapshots of one average at near times are nearly parallel: what only rounding would decide is left at 0.
    size = np.sqrt(np.diag(products))
    found = np.linalg.lstsq(products / np.outer(size, size), aims / size, rcond=1e-12)[0] / size
    norm = wanted.product(wanted)
    squared = norm - 2 * found @ aims + found @ products @ found
    return found, float(np.sqrt(max(squared, 0.0) / norm))


def write_snapshot(folder: Path, step: int, averages: Mapping[str, Any]) -> None:
    """Write the trees `averages`, by the names of LENGTHS, as they are after `step` steps, into `folder`/`step`."""
    target = folder / str(step)
    write_atomically(target / _FILE, safetensors.numpy.save(flatten(dict(averages))))
    write_sums(target, [_FILE])  # last: a snapshot without it is not finished


def snapshot_steps(folder: Path, last: int) -> list[int]:
    """The steps up to `last` of which `folder` has a finished snapshot."""
    found = folder.iterdir() if folder.is_dir() else ()
    steps = [int(path.name) for path in found if path.name.isdecimal() and (path / SUMS).exists()]
    return sorted(step for step in steps if step <= last)


def average_of_length(folder: Path, last: int, length: float, note: Callable[[str], None]) -> Any:
    """The parameters averaged over training with `length`, from the snapshots in `folder` up to step `last`.

    Seen from the last snapshot, which is said by `note` where it is not of step `last`. Raises UserError for a length
    that cannot be meant, without snapshots, for a damaged one, and when they are too few for this length.
    """
    low, high = LENGTH_RANGE
    if not low <= length <= high:
        raise UserError(
            f"--ema-length is {length:g}; {low:g} to {high:g} of the training time can be asked for (the standard "
            "deviation of the average's weights; 0.05 to 0.2 is usual)."
        )
    steps = snapshot_steps(folder, last)
    if not steps:
        raise UserError(
            f"{folder}: no snapshots of averages, from which --ema-length makes one. They are kept by a training with "
            "config.optimizer.power_ema=True. Export without --ema-length: the moving average of the run."
        )
    profiles = {(step, name): Profile(exponent(kept), step) for step in steps for name, kept in LENGTHS.items()}
    factors, off = coefficients(list(profiles.values()), Profile(exponent(length), steps[-1]))
    if off > WORST_FIT:
        kept = " and ".join(map(str, LENGTHS.values()))
        raise UserError(
            f"--ema-length {length:g}: the snapshots in {folder} ({len(steps)}) give its weights with an error of "
            f"{off:.0%}; up to {WORST_FIT:.0%} passes. Ask for a length nearer to {kept}"
            ", or train with a smaller config.every.ema_snapshots."
        )
    if steps[-1] != last:
        note(f"the average is that of step {steps[-1]}, where the last snapshot is; {last} steps are done")
    note(f"average of length {length:g} from {len(profiles)} snapshots; its weights are off by {off:.2%}")
    return _summed(folder, dict(zip(profiles, factors, strict=True)))


def _summed(folder: Path, factors: Mapping[tuple[int, str], float]) -> Any:
    """The sum of factor times snapshot, added in float64, one file open at a time."""
    total: dict[str, np.ndarray] = {}
    for step in sorted({step for step, _ in factors}):
        path = folder / str(step)
        if problem := verify_sums(path, read_sums((path / SUMS).read_bytes()), (_FILE,)).get(_FILE):
            raise UserError(f"{path / _FILE}: {problem}. Delete the folder {path} to do without this snapshot.")
        with safetensors.safe_open(path / _FILE, "numpy") as file:
            for key in file.keys():  # noqa: SIM118 - a file is no mapping
                name, _, leaf = key.partition("/")
                part = factors[step, name] * file.get_tensor(key).astype(np.float64)
                total[leaf] = total[leaf] + part if leaf in total else part
    return flax.traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in total.items()}, sep="/")
