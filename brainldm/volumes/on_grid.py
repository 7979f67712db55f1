"""Volumes that a run reads again and again: uncompressed NIfTI on a training grid, read without a copy too many.

Everything else goes through `brainldm.volumes.nifti.read_volume`, which also says what is wrong with a file.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically
from brainldm.runtime.format import format_shape
from brainldm.volumes.grids import SPACINGS_MM, Grid, training_grid
from brainldm.volumes.nifti import Volume, block_average, read_volume

_HEADER = 348
_TYPES = {2: np.dtype("u1"), 4: np.dtype("<i2"), 16: np.dtype("<f4"), 512: np.dtype("<u2")}


def read_stored(path: str | os.PathLike) -> Volume | None:
    """The volume of an uncompressed little-endian NIfTI-1 file on a training grid, float32 [D, H, W] in C order.

    The values are, bit for bit, those that `read_volume` finds. Of the file only what a batch depends on is looked
    at: shape, affine, type, length, finite values; that it is the file once written, its checksum proves
    (`brainldm check`). None for any other kind of file and for what is not sound: `read_volume` then reads it, or
    says what is wrong.
    """
    path = Path(path)
    if path.suffix != ".nii":
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            header = _header(file.read(_HEADER))
            if header is None:
                return None
            shape, dtype = header.get_data_shape(), _TYPES[int(header["datatype"])]
            start, count = int(header["vox_offset"]), math.prod(shape)
            if os.fstat(file.fileno()).st_size < start + count * dtype.itemsize:
                return None
            file.seek(start)
            stored = np.fromfile(file, dtype, count)
        slope, intercept = header.get_slope_inter()
    except (OSError, ValueError, nib.spatialimages.HeaderDataError):
        return None
    data = _scaled(stored.reshape(shape, order="F"), slope, intercept or 0.0)
    # minimum and maximum carry NaN and infinity on
    low, high = data.min(), data.max()
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        return None
    return Volume(data, header.get_best_affine())


def _header(content: bytes) -> nib.Nifti1Header | None:
    """The header, when it is of the kind that `read_stored` reads."""
    if len(content) < _HEADER or content[:4] != b"\x5c\x01\x00\x00" or content[344:348] != b"n+1\0":
        return None
    header = nib.Nifti1Header(content, check=False)
    if int(header["datatype"]) not in _TYPES or int(header["dim"][0]) != 3:
        return None
    on_grid = _source_grid(header.get_data_shape(), header.get_best_affine()) is not None
    return header if on_grid and header["vox_offset"] >= _HEADER else None


def _scaled(stored: np.ndarray, slope: float | None, intercept: float) -> np.ndarray:
    """`stored` * slope + intercept as float32 in C order, without a whole array of float64.

    NIfTI runs fastest along x and arrays here along z. Plane by plane the turn stays in the processor's cache,
    which takes less than half of the time of turning the whole volume at once.
    """
    data = np.empty(stored.shape, np.float32)
    turned = stored.T
    plane = np.empty((turned.shape[0], turned.shape[2]), np.float32)
    for y in range(stored.shape[1]):
        if slope is None:
            plane[...] = turned[:, y]
        elif intercept:  # two roundings of float32 would differ from one: float64, as nibabel computes
            plane[...] = turned[:, y] * np.float64(slope) + intercept
        else:
            np.multiply(turned[:, y], np.float32(slope), out=plane)
        data[:, y] = plane.T
    return data


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
        f"{where}: shape {format_shape(volume.data.shape)} with its first voxel at "
        f"{np.round(volume.affine[:3, 3], 1).tolist()} mm does not fit the training grid "
        f"{format_shape(grid.shape)} at {grid.spacing_mm[0]:g} mm (first voxel at "
        f"{grid.affine[:3, 3].tolist()} mm, RAS). Bring the scan to MNI152 space on this grid first "
        "(brainldm prepare), or set config.data.spacing_mm to the grid that it is on."
    )


def read_on_grid(path: str | os.PathLike, grid: Grid, cache_dir: str | os.PathLike = "") -> np.ndarray:
    """The volume at `path` on `grid`, float32 [D, H, W], in its own intensities.

    With a `cache_dir` a compressed file is unpacked there the first time and read from there afterwards; the values
    are the same. Raises UserError for a file that cannot be read or lies elsewhere.
    """
    path = Path(path)
    if cache_dir and path.name.endswith(".gz"):
        unpacked = _unpacked_path(path, grid, Path(cache_dir))
        volume = read_stored(unpacked)
        if volume is None:  # not there, or not what was written
            _unpack(path, grid, unpacked)
            volume = read_stored(unpacked)
        if volume is not None:
            return on_grid(volume, grid, path)
    return on_grid(read_stored(path) or read_volume(path), grid, path)


def _unpacked_path(path: Path, grid: Grid, folder: Path) -> Path:
    """Where the unpacked copy of a file lies: another one when the file or the grid changes."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    key = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{grid.shape}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.nii"


def _unpack(path: Path, grid: Grid, target: Path) -> None:
    """Write the volume of a .nii.gz file to `target`: as it is where `read_stored` reads that, else as float32."""
    volume = read_volume(path)
    content = gzip.decompress(path.read_bytes())
    header = _header(content[:_HEADER])
    if header is None or header.get_data_shape() != grid.shape:
        image = nib.Nifti1Image(np.asarray(on_grid(volume, grid, path), np.float32), grid.affine)
        image.header.set_slope_inter(1.0, 0.0)
        content = image.to_bytes()
    write_atomically(target, content)
