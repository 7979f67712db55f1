"""What the stages take on disk and in memory for the data, exact from the numbers of scans and voxels.

Networks are not in it: their memory, and the time that training takes, depend on the accelerator. Of times there is
only a rough one for `prepare`.
"""

from __future__ import annotations

import dataclasses
import math

from brainldm.volumes.grids import Grid

HEADER_BYTES = 352
"""Of a NIfTI-1 file without extensions."""

GENERATED = 1000
"""Synthetic subjects that the row of generation stands for."""

PREPARE_CORE_SECONDS = 8.0
"""Of one processor core, for one scan of 1 mm: 5 were measured for a stripped brain and 8 for a whole head (x86-64,
without bias correction and skull stripping)."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """One stage: bytes that it writes, bytes of data that it holds in memory, how both come about, and roughly how many
    `seconds` it takes (None: not estimated)."""

    stage: str
    disk_bytes: int
    memory_bytes: int
    how: str
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class DataSizes:
    """What the costs depend on, with the paper's values as defaults."""

    batch_size: int = 1
    latent_channels: int = 3
    downsampling: int = 8
    variants: int = 1
    generate_batch: int = 4
    cache_gib: float = 4.0


def costs(scans: int, grid: Grid, largest_scan_voxels: int, workers: int, sizes: DataSizes | None = None) -> list[Cost]:
    """The stages in their order, for `scans` scans trained on `grid`."""
    sizes = sizes or DataSizes()
    voxels = math.prod(grid.shape)
    size = "x".join(map(str, grid.shape))
    latent_shape = [math.ceil(side / sizes.downsampling) for side in grid.shape]
    latent = math.prod(latent_shape) * sizes.latent_channels
    latent_text = "x".join(map(str, (*latent_shape, sizes.latent_channels)))
    volume = 2 * voxels + HEADER_BYTES
    # In whole volumes, as the pipeline keeps them.
    kept = min(scans, int(sizes.cache_gib * 2**30 / (4 * voxels))) * 4 * voxels
    latents = scans * sizes.variants * latent * 4 * 2
    variants = f" x {sizes.variants} variants" if sizes.variants > 1 else ""
    return [
        Cost(
            "prepare",
            scans * volume,
            workers * 4 * (largest_scan_voxels + voxels),
            f"disk: {scans} volumes of {size}, int16, not compressed. Memory: the largest scan and its result in "
            f"float32, for each of {workers} processes; registration takes some copies more. Time: about "
            f"{PREPARE_CORE_SECONDS:g} s a scan and core",
            scans * PREPARE_CORE_SECONDS / workers,
        ),
        Cost(
            "autoencoder training",
            0,
            kept + sizes.batch_size * 4 * voxels,
            f"memory: the volumes kept in float32 (config.data.cache_gib {sizes.cache_gib:g}) and a batch of "
            f"{sizes.batch_size}; the {readable_bytes(scans * volume)} of prepared volumes are read fastest while they "
            "fit into free memory",
        ),
        Cost(
            "encoding latents",
            latents,
            4 * voxels,
            f"disk: mean and standard deviation of {scans} latents of {latent_text}{variants}, float32",
        ),
        Cost(
            "diffusion training",
            0,
            sizes.batch_size * latent * 4,
            f"memory: a batch of {sizes.batch_size}; the {readable_bytes(latents / 2)} of means are read fastest while "
            "they fit into free memory. No volume is read",
        ),
        Cost(
            f"generating {GENERATED} brains",
            GENERATED * volume,
            sizes.generate_batch * 4 * voxels,
            f"disk: at most, before gzip. Memory: {sizes.generate_batch} brains at once in float32",
        ),
    ]


def readable_bytes(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
