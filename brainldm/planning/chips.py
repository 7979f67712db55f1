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
    link_bandwidth: bytes/s that a device can send to its neighbours along one ring, both ways together.
    float32_share: of the peak that is left in float32: TPUs round the factors of products to bfloat16 unless told
    otherwise, NVIDIA's to TF32 at half the rate.
    """

    name: str
    memory: float
    peak: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str
    float32_share: float = 1.0


_CLOUD = "https://docs.cloud.google.com/tpu/docs/"

# Usable memory of a TPU is what its compiler names as the limit when a program does not fit, a little less than the
# capacity in the documents. A ring of a torus uses two of the four (2D) or six (3D) ports of a chip.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", 15.75 * GIB, 197e12, 819 * GB, 100 * GB, f"{_CLOUD}v5e (16 GB; 4 ports, 1600 Gbit/s out)"),
        Chip("v5p", 95.74 * GIB, 459e12, 2765 * GB, 200 * GB, f"{_CLOUD}v5p (95 GB; 6 ports, 4800 Gbit/s out)"),
        Chip("v6e", 31.25 * GIB, 918e12, 1638 * GB, 200 * GB, f"{_CLOUD}v6e (32 GB; 4 ports, 3200 Gbit/s out)"),
        Chip(
            "h200",
            139.8 * GIB,
            989e12,
            4800 * GB,
            450 * GB,
            "NVIDIA H200 SXM: 141 GB, NVLink 900 GB/s",
            0.5,
        ),
        Chip("h100", 79.6 * GIB, 989e12, 3350 * GB, 450 * GB, "NVIDIA H100 SXM: 80 GB, NVLink 900 GB/s", 0.5),
        Chip("a100", 79.3 * GIB, 312e12, 2039 * GB, 300 * GB, "NVIDIA A100 80GB SXM: NVLink 600 GB/s", 0.5),
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
