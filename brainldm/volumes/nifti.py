"""Volumes in and out: the only place that reads a volume and the only place that writes one."""

from __future__ import annotations

import dataclasses
import gzip
import math
import os
from pathlib import Path
from typing import BinaryIO, Literal

import nibabel as nib
import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import write_atomically
from brainldm.volumes.headers import BLOCK_BYTES, Header, cached_header, opened

INT16_MAX, UINT8_MAX = 32767, 255
_CHUNK_BYTES = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional image: `data` float32 [D, H, W] in RAS order and its `affine` [4, 4] in mm.

    `notes` say what was decided where the file's own statements disagree.
    """

    data: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel size along each axis, in mm, [3]."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def anisotropy(self) -> float:
        """Longest over shortest side of a voxel; 1 for cubes."""
        return float(self.spacing_mm.max() / self.spacing_mm.min())


def read_volume(path: str | os.PathLike, order: Literal["F", "C"] = "F", content: bytes | None = None) -> Volume:
    """Read NIfTI (.nii, .nii.gz) or MGH (.mgh, .mgz) as float32 in RAS order, slope and intercept applied.

    Oblique images keep their affine; axes are only swapped and turned to the nearest RAS order. `order` is that of the
    array in memory, for a file whose axes are RAS: "F" as in the file, "C" as a batch has it. No more is unpacked
    than the header allows (at most 512^3 voxels), and a gzip stream is read to its end and its checksum verified,
    because nibabel alone accepts damaged streams. One frame of a fourth dimension is dropped. With the `content` of a
    compressed file, as where it lies inside another, `path` is its name alone.
    Raises UserError for a file that is absent, damaged, longer or shorter than its header says, not one
    three-dimensional image of plain numbers, without a clear orientation, or that holds NaN or infinite voxels or one
    value everywhere.
    """
    path = Path(path)
    with opened(path, content) as (stream, size):
        block = stream.read(BLOCK_BYTES)
        header = cached_header(block, path)
        if size is None:
            content = _unpack_voxels(stream, block, header, path)
            stored = np.frombuffer(content, header.dtype)
        else:
            _check_length(size, header, path)
            stream.seek(header.offset)
            stored = np.fromfile(stream, header.dtype, math.prod(header.shape))
    stored = stored.reshape(header.shape, order="F")
    data = _scaled_by_planes(stored, header) if order == "C" else _scaled(stored, header)
    low, high = data.min(), data.max()  # both carry NaN and infinity on
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(data.size - np.isfinite(data).sum())
        raise UserError(
            f"{path}: {bad} voxels are NaN or infinite (of {data.size}). Replace them (by 0 in the background) first."
        )
    if low == high:
        raise UserError(f"{path}: every voxel has the same value, so there is no image in it. Leave it out.")
    if header.orientation == "RAS":
        return Volume(data, header.affine, header.notes)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, header.affine))
    return Volume(np.asarray(canonical.dataobj, np.float32), canonical.affine, header.notes)


def _scaled(stored: np.ndarray, header: Header) -> np.ndarray:
    """Stored numbers times slope plus intercept, computed in float64, as float32 in the order of the file."""
    data = np.zeros(header.shape, np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        for k in range(header.shape[2]):  # slice by slice: no second volume in float64
            data[..., k] = stored[..., k] * np.float64(header.slope) + np.float64(header.intercept)
    return data


def _scaled_by_planes(stored: np.ndarray, header: Header) -> np.ndarray:
    """The same values as those of `_scaled`, in C order.

    NIfTI runs fastest along x and arrays here along z. Plane by plane the turn stays in the processor's cache,
    which takes less than half of the time of turning the whole volume at once.
    """
    data = np.empty(stored.shape, np.float32)
    turned = stored.T
    plane = np.empty((turned.shape[0], turned.shape[2]), np.float32)
    slope = np.float32(header.slope)
    # One product of at most 24 by 24 bits is rounded once, in float32 as in float64.
    exact = header.intercept == 0 and slope == header.slope and np.can_cast(header.dtype, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for y in range(stored.shape[1]):
            if exact:
                np.multiply(turned[:, y], slope, out=plane)
            else:
                plane[...] = turned[:, y] * np.float64(header.slope) + np.float64(header.intercept)
            data[:, y] = plane.T
    return data


def _check_length(size: int, header: Header, path: Path) -> None:
    """Raise UserError when an uncompressed file is shorter or longer than its header says."""
    end = header.offset + header.voxel_bytes
    if size < end:
        raise _wrong_length(path, size, end)
    if size > end + header.may_follow:
        raise _too_long(path, end)


def _unpack_voxels(stream: BinaryIO, block: bytes, header: Header, path: Path) -> memoryview:
    """The stored voxels of a gzip stream, which is after `block`; never more than the header says is held."""
    end = header.offset + header.voxel_bytes
    content = bytearray(end)
    done = min(len(block), end)
    content[:done] = block[:done]
    while done < end and (chunk := stream.read(min(_CHUNK_BYTES, end - done))):
        content[done : done + len(chunk)] = chunk
        done += len(chunk)
    if done < end:
        raise _wrong_length(path, done, end)
    # read on to the end of the stream, where its checksum is, but not through a bomb
    more = len(block) - done if len(block) > done else 0
    while more <= header.may_follow and (chunk := stream.read(min(_CHUNK_BYTES, header.may_follow + 1 - more))):
        more += len(chunk)
    if more > header.may_follow:
        raise _too_long(path, end)
    return memoryview(content)[header.offset :]


def _too_long(path: Path, end: int) -> UserError:
    return UserError(
        f"{path}: holds more than the {end} bytes that its header says, so one of the two is wrong; nothing more "
        "was unpacked. Convert the scan again."
    )


def _wrong_length(path: Path, found: int, expected: int) -> UserError:
    return UserError(f"{path}: cut off, {found} bytes where its header says {expected}. Copy or convert it again.")


def write_volume(
    path: str | os.PathLike,
    data: np.ndarray,
    affine: np.ndarray,
    description: str = "",
    scale_max: float | None = 1.0,
) -> bytes:
    """Write what `volume_bytes` makes of `data` [D, H, W], compressed when the name ends with .gz.

    The file appears whole or not at all. Returns the bytes written. Raises ValueError for data that is not finite or
    not 3D.
    """
    path = Path(path)
    content = volume_bytes(data, affine, description, scale_max, compress=path.name.endswith(".gz"))
    write_atomically(path, content)
    return content


def volume_bytes(
    data: np.ndarray,
    affine: np.ndarray,
    description: str = "",
    scale_max: float | None = 1.0,
    compress: bool = True,
    bits: Literal[8, 16] = 16,
) -> bytes:
    """`data` [D, H, W] as NIfTI, int16 with a fixed slope, `scale_max` being the largest value that can be stored.
    With 8 `bits` uint8, for a page to look at: without what is below 0.

    The slope is the same for every image, so intensities stay comparable between images. With `scale_max` None the
    values are stored as float32, as they are. `description` (at most 79 characters) goes into the header. The bytes
    depend on the arguments alone. Raises ValueError for data that is not finite or not 3D.
    """
    data = np.asarray(data)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise ValueError(f"a finite three-dimensional array is wanted, got shape {data.shape}")
    low, high, kind = (-INT16_MAX, INT16_MAX, np.int16) if bits == 16 else (0, UINT8_MAX, np.uint8)
    slope = 1.0 if scale_max is None else scale_max / high
    stored = data.astype(np.float32) if scale_max is None else np.clip(np.rint(data / slope), low, high).astype(kind)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm")
    # code 4: the training box lies in MNI152 space
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    image.header["descrip"] = description.encode()[:79]
    content = image.to_bytes()
    return gzip.compress(content, compresslevel=1, mtime=0) if compress else content


def block_average(data: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of factor^3 voxels, [D, H, W] -> [D/factor, H/factor, W/factor] (anti-aliased downsampling)."""
    d, h, w = (side // factor for side in data.shape)
    return data.reshape(d, factor, h, factor, w, factor).mean(axis=(1, 3, 5), dtype=np.float32)
