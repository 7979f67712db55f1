"""A scan's file from outside: its header, length and identity, from a few kilobytes however large it is."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import open_regular
from brainldm.volumes.grids import SPACINGS_MM, training_grid
from brainldm.volumes.headers import BLOCK_BYTES, Header, cached_header

_PIECE = 4096
_GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How the voxels lie.

    `shape`, `spacing_mm` (to 0.01), `orientation` (such as LAS) and `data_type` are as stored; `ras_shape` and
    `first_mm`, the world position of the first voxel, hold after bringing the axes to RAS order. `oblique_deg` is the
    largest angle between a voxel axis and a world axis. `grid_mm` is the spacing of the training grid that the scan
    lies on, or None.
    """

    shape: tuple[int, ...]
    ras_shape: tuple[int, ...]
    first_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    oblique_deg: float
    data_type: str
    grid_mm: int | None

    @property
    def voxels(self) -> int:
        """Their number."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Outside:
    """What was seen of a file: bytes on disk, identity, digest of two pieces of it, geometry.

    `problem` says why the header cannot be used (`geometry` is None then). `doubtful` is true when the length of the
    file, or of the gzip stream by its trailer, is not what the header announces: most such files are cut off, and
    reading tells. Files of the same content have the same `pieces`.
    """

    path: Path
    size: int = 0
    identity: tuple[int, int] = (0, 0)
    pieces: bytes = b""
    geometry: Geometry | None = None
    problem: str = ""
    doubtful: bool = False


def look_at(path: str | os.PathLike) -> Outside:
    """The outside of one file. Raises nothing: what cannot be opened has a `problem`."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            about = os.fstat(file.fileno())
            start = file.read(_PIECE)
            middle = _piece(file, about.st_size // 2 - _PIECE // 2, _PIECE)
            trailer = _piece(file, about.st_size - 4, 4)
    except UserError as error:
        return Outside(path, problem=str(error))
    except OSError as error:
        return Outside(path, problem=f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.")
    digest = hashlib.blake2b(start + middle, digest_size=16).digest()
    seen = Outside(path, about.st_size, (about.st_dev, about.st_ino), digest)
    packed = start[:2] == _GZIP_MAGIC
    if not start or packed != path.name.lower().endswith((".gz", ".mgz")):
        # The reader has the words for it.
        return dataclasses.replace(seen, doubtful=True)
    try:
        block = zlib.decompressobj(wbits=31).decompress(start, BLOCK_BYTES) if packed else start[:BLOCK_BYTES]
        header = cached_header(block, path)
    except zlib.error:
        return dataclasses.replace(seen, doubtful=True)
    except UserError as error:
        return dataclasses.replace(seen, problem=str(error))
    end = header.offset + header.voxel_bytes
    # gzip gives the length modulo 2^32
    length = int.from_bytes(trailer, "little") if packed else about.st_size
    low, high = (end, end + header.may_follow)
    fits = length == end % 2**32 if packed and not header.may_follow else low <= length <= high
    return dataclasses.replace(seen, geometry=_geometry(_key(header)), doubtful=not fits)


def _piece(file, start: int, length: int) -> bytes:
    file.seek(max(0, start))
    return file.read(length)


def _key(header: Header) -> tuple:
    scaled = (header.slope, header.intercept) != (1.0, 0.0)
    return header.shape, header.dtype.str, scaled, header.affine.tobytes()


@functools.lru_cache(maxsize=4096)
def _geometry(key: tuple) -> Geometry:
    """Scans of one study share most geometries, and prepared ones all, hence the cache."""
    shape, dtype, scaled, affine = key
    affine = np.frombuffer(affine, np.float64).reshape(4, 4)
    axes = nib.orientations.io_orientation(affine)
    ras = affine @ nib.orientations.inv_ornt_aff(axes, shape)
    ras_shape = tuple(shape[i] for i in np.argsort(axes[:, 0]))
    stored = np.dtype(dtype)
    details = (", with slope" if scaled else "") + (", big-endian" if stored.byteorder == ">" else "")
    return Geometry(
        shape=shape,
        ras_shape=ras_shape,
        first_mm=tuple(float(x) for x in np.round(ras[:3, 3], 2)),
        spacing_mm=tuple(float(x) for x in np.round(np.linalg.norm(affine[:3, :3], axis=0), 2)),
        orientation="".join(nib.aff2axcodes(affine)),
        oblique_deg=float(np.degrees(nib.affines.obliquity(affine)).max().round(1)),
        data_type=stored.newbyteorder("=").name + details,
        grid_mm=_grid(ras_shape, ras),
    )


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> int | None:
    for spacing in SPACINGS_MM:
        grid = training_grid(spacing)
        if shape == grid.shape and np.allclose(affine, grid.affine, atol=1e-3):
            return spacing
    return None
