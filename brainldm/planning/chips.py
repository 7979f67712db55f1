"""What accelerators have, and the slices of TPUs that can be planned for."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from brainldm.runtime.errors import UserError

GIB = 2**30
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device.

    memory: bytes that a program can use. peak: bfloat16 FLOP/s of the matrix units, dense. memory_bandwidth: bytes/s.
    link_bandwidth: bytes/s that a device can send to its neighbours along one ring, both ways together. clock: Hz, of
    a TPU, in whose cycles its compiler gives estimates. float32_share: of the peak that is left in float32: TPUs round
    the factors of products to bfloat16 unless told otherwise, NVIDIA's to TF32 at half the rate.
    """

    name: str
    memory: float
    peak: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str
    clock: float = 0.0
    float32_share: float = 1.0

    @property
    def capacity(self) -> float:
        """Bytes that the device has."""
        return self.memory / (1.0 if self.clock else GPU_SHARE)


GPU_SHARE = 0.9
"""Of a GPU's memory that a program can use: what launch/run.sh lets JAX have; JAX on its own takes 0.75."""


def _tpu(name: str, gib: float, peak: float, memory: float, link: float, clock: float, source: str) -> Chip:
    return Chip(name, gib * GIB, peak * 1e12, memory * GB, link * GB, f"{_CLOUD}{name} ({source})", clock * 1e9)


def _gpu(name: str, gib: float, peak: float, memory: float, link: float, source: str) -> Chip:
    usable = GPU_SHARE * gib * GIB
    return Chip(name, usable, peak * 1e12, memory * GB, link * GB, source, float32_share=0.5)


_CLOUD = "https://docs.cloud.google.com/tpu/docs/"

# Usable memory of a TPU is what its compiler names as the limit when a program does not fit, a little less than the
# capacity in the documents. A ring of a torus uses two of the four (2D) or six (3D) ports of a chip. The clock of a TPU
# follows from its peak and the size of its matrix units.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v5e", 15.75, 197, 819, 100, 1.5, "16 GB; 4 ports, 1600 Gbit/s out"),
        _tpu("v5p", 95.74, 459, 2765, 200, 1.75, "95 GB; 6 ports, 4800 Gbit/s out"),
        _tpu("v6e", 31.25, 918, 1638, 200, 1.75, "32 GB; 4 ports, 3200 Gbit/s out"),
        _gpu("a100", 79.2, 312, 2039, 300, "NVIDIA A100 80GB SXM: NVLink 600 GB/s"),
        _gpu("h100", 79.1, 989, 3350, 450, "NVIDIA H100 SXM: 80 GB, NVLink 900 GB/s"),
        _gpu("h200", 139.8, 989, 4800, 450, "NVIDIA H200 SXM: 141 GB, NVLink 900 GB/s"),
    )
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES: dict[str, tuple[str, ...]] = {
    "v5e": _FLAT,
    "v5p": (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16"),
        *("8x16x20", "12x12x24", "16x16x16", "16x16x24"),
    ),
    "v6e": _FLAT,
}


def count(shape: str) -> int:
    """Chips of a slice: "4x8" -> 32."""
    return math.prod(map(int, shape.split("x")))


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice by the name that libtpu knows, as v5e:2x4."""

    chip: Chip
    shape: str

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{self.shape}"

    @property
    def devices(self) -> int:
        return count(self.shape)

    @property
    def chips_per_host(self) -> tuple[int, int, int]:
        """Chips of one host along the axes: slices of up to eight v5e or v6e chips have one host."""
        sides = (*map(int, self.shape.split("x")), 1)
        return sides[:3] if len(sides) == 3 and self.devices <= 8 else (2, 2, 1)


def parse_topology(text: str) -> Topology:
    """The slice that `text` names: "v5e:2x4", or by the number in its product name, "v5e-8", "v5p-128".

    (The number of a v5p counts tensor cores, of which a chip has two.) Raises UserError naming the nearest.
    """
    written = text.strip().lower().replace("v5litepod", "v5e")
    chip, separator, shape = re.match(r"([a-z0-9]*)([:=_-]?)(.*)", written).groups()
    if chip not in SLICES:
        near = difflib.get_close_matches(chip, SLICES, 1, cutoff=0.3)
        hint = (
            f" Did you mean {near[0]}:{shape if near and shape in SLICES[near[0]] else SLICES[near[0]][2]}?"
            if near
            else ""
        )
        raise UserError(
            f"--topology {text!r}: no such TPU. Known are {', '.join(SLICES)}, as in v5e:2x4 or v5p:4x4x4.{hint}"
        )
    known = SLICES[chip]
    if separator == "-" and shape.isdigit():
        chips = int(shape) // 2 if chip == "v5p" else int(shape)
        matches = [s for s in known if count(s) == chips]
        if matches:
            return Topology(CHIPS[chip], matches[0])
    elif shape in known:
        return Topology(CHIPS[chip], shape)
    else:
        chips = count(shape) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape) else 0
    what, nearest = "Known are", known
    if chips:
        what, nearest = "The nearest are", sorted(known, key=lambda s: (abs(math.log(count(s) / chips)), s))[:2]
    names = ", ".join(f"{chip}:{s} ({count(s)} chips)" for s in sorted(nearest, key=count))
    raise UserError(f"--topology {text!r}: there is no such slice of {chip}. {what} {names}.")


def find_chip(name: str) -> Chip:
    """The chip of that name. Raises UserError naming the nearest."""
    if name.lower() not in CHIPS:
        near = difflib.get_close_matches(name.lower(), CHIPS, 1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--chip {name!r}: no such chip. Known are {', '.join(CHIPS)}.{hint}")
    return CHIPS[name.lower()]
