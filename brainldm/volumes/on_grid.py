"""Volumes on a training grid, read again and again during a run, and unpacked copies of compressed ones."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically
from brainldm.volumes.grids import SPACINGS_MM, Grid, training_grid
from brainldm.volumes.headers import read_header
from brainldm.volumes.nifti import Volume, block_average, read_volume, write_volume


def _source_grid(shape: tuple[int, ...], affine: np.ndarray) -> Grid | None:
    """The training grid that a volume lies on."""
    for spacing in SPACINGS_MM:
        source = training_grid(spacing)
        if tuple(shape) == source.shape and np.allclose(affine, source.affine, atol=1e-3):
            return source
    return None


def on_grid(volume: Volume, grid: Grid, where: str | os.PathLike) -> np.ndarray:
    """The data of `volume` on `grid`; a volume on a finer training grid is averaged over blocks.

    Raises UserError naming `where` for another shape or position.
    """
    source = _source_grid(volume.data.shape, volume.affine)
    factor, rest = divmod(source.shape[0], grid.shape[0]) if source else (0, 0)
    if factor and not rest:
        return block_average(volume.data, factor) if factor > 1 else volume.data
    raise UserError(
        f"{where}: shape {'x'.join(map(str, volume.data.shape))} with its first voxel at "
        f"{np.round(volume.affine[:3, 3], 1).tolist()} mm does not fit the training grid "
        f"{'x'.join(map(str, grid.shape))} at {grid.spacing_mm[0]:g} mm (first voxel at "
        f"{grid.affine[:3, 3].tolist()} mm, RAS). Bring the scan to MNI152 space on this grid first "
        "(brainldm prepare), or set config.data.spacing_mm to the grid that it is on."
    )


def read_on_grid(path: str | os.PathLike, grid: Grid, cache_dir: str | os.PathLike = "") -> np.ndarray:
    """The volume at `path` on `grid`, float32 [D, H, W], in its own intensities.

    With a `cache_dir` a compressed file is unpacked there the first time and read from there afterwards; the values
    are the same. Raises UserError for a file that cannot be read or lies elsewhere.
    """
    path = Path(path)
    if not path.name.endswith(".gz"):
        return on_grid(read_volume(path, order="C"), grid, path)
    if not cache_dir:
        return on_grid(read_volume(path), grid, path)
    unpacked = _unpacked_path(path, grid, Path(cache_dir))
    try:
        volume = read_volume(unpacked, order="C")
    except UserError:  # not there, or not what was written
        _unpack(path, grid, unpacked)
        volume = read_volume(unpacked, order="C")
    return on_grid(volume, grid, path)


def _unpacked_path(path: Path, grid: Grid, folder: Path) -> Path:
    """Where the unpacked copy of a file lies: another one when the file or the grid changes."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    key = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{grid.shape}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.nii"


def _unpack(path: Path, grid: Grid, target: Path) -> None:
    """Write the volume of a .nii.gz file to `target`: as it is where that is small and on `grid`, else as float32."""
    volume = read_volume(path)
    data, header = on_grid(volume, grid, path), read_header(path)
    if header.shape == grid.shape and header.orientation == "RAS" and header.dtype.itemsize <= 4:
        write_atomically(target, gzip.decompress(path.read_bytes()))
    else:
        write_volume(target, data, grid.affine, scale_max=None)
