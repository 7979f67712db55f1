"""What the header of a NIfTI or MGH file says, checked before a voxel is read.

Formats: NIfTI-1 (https://nifti.nimh.nih.gov/nifti-1), NIfTI-2, and FreeSurfer's MGH.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from brainldm.runtime.errors import UserError
from brainldm.runtime.format import format_shape

BLOCK_BYTES = 1024
"""Enough of the beginning of a file for the header of every format."""

MAX_VOXELS = 512**3
"""Voxels of the largest image that is read: 0.5 mm over a whole head, 0.5 GiB as float32."""
MAX_OFFSET = 16 * 2**20
"""Bytes before the first voxel; header extensions are smaller."""
VOXEL_MM = (0.05, 25.0)
"""Voxel sizes that can be a head in mm."""

FORMS_APART_MM = 0.5
"""How far sform and qform may place a corner of the image apart and still be the same."""
SIZE_TOLERANCE = 0.01
"""Relative difference of two statements of the voxel size, and the largest cosine between two axes."""

_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI = {
    b"n+1\0": (nib.Nifti1Header, 344, 348),
    b"n+2\0": (nib.Nifti2Header, 4, 540),
}
_MGH_OFFSET, _MGH_FOOTER = 284, 2**20
_NIFTI2_BYTES, _OTHER_BYTES = 540, 352
_UNITS = {1: "metres", 3: "micrometres"}


@dataclasses.dataclass(frozen=True, eq=False)
class Header:
    """How to read the voxels of a file and where they lie.

    `shape` (three sides), stored `dtype` with its byte order, `offset` of the first voxel in the unpacked file,
    `slope` and `intercept` of the stored numbers, `affine` [4, 4] voxel index to world mm as the file has it (any
    orientation), `may_follow` bytes that the format puts after the voxels, and `notes`, what was decided about
    statements that disagree.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    may_follow: int = 0
    notes: tuple[str, ...] = ()

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the stored voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel size along each stored axis, in mm, [3]."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @functools.cached_property
    def orientation(self) -> str:
        """Where the three stored axes point, such as LAS."""
        return "".join(nib.aff2axcodes(self.affine))


def is_image_name(name: str) -> bool:
    """Whether a file of this name can be read as a volume."""
    return name.lower().endswith((".nii", ".nii.gz", ".mgh", ".mgz"))


def read_header(path: str | os.PathLike) -> Header:
    """The checked header of a volume, without its voxels. Raises UserError as `read_volume` does for a header."""
    path = Path(path)
    with opened(path) as (stream, _):
        return cached_header(stream.read(BLOCK_BYTES), path)


@contextlib.contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[tuple[BinaryIO, int | None]]:
    """The unpacked stream of a file and, where it is not compressed, its size. Its errors become UserError.

    A compressed file whose `content` is given is not looked for.
    """
    packed = path.name.lower().endswith((".gz", ".mgz"))
    try:
        found = path.stat() if content is None else None
        if found and not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "no ordinary file"
            raise UserError(f"{path}: cannot be read, it is {what}. Give the file of one scan.")
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            magic = file.read(2)
            file.seek(0)
            if not magic:
                raise UserError(f"{path}: empty (0 bytes). Copy the file again.")
            if packed != (magic == _GZIP_MAGIC):
                raise UserError(
                    f"{path}: named as {'gzip and is not' if packed else 'uncompressed and is gzip'}. Rename it to "
                    "what it is, or copy it again if it should be an image."
                )
            if packed:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream, None
            else:
                yield file, found.st_size
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: damaged or cut off, the gzip stream does not end well ({error}). Copy the file again."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error


def cached_header(block: bytes, path: Path) -> Header:
    """`parse_header`, which for the same bytes is asked once: the scans of a study share most headers."""
    # NIfTI-2 says its size in the first four bytes, in one byte order or the other.
    block = block[: _NIFTI2_BYTES if _NIFTI2_BYTES.to_bytes(2, "big") in (block[2:4], block[1::-1]) else _OTHER_BYTES]
    try:
        return _parse_nameless(block, path.name.lower().endswith((".mgh", ".mgz")))
    except UserError:
        return parse_header(block, path)  # for the message


@functools.lru_cache(maxsize=4096)
def _parse_nameless(block: bytes, mgh: bool) -> Header:
    header = parse_header(block, "scan.mgh" if mgh else "scan.nii")
    header.affine.flags.writeable = False  # one for all files with these bytes
    return header


def parse_header(block: bytes, path: object) -> Header:
    """The header at the beginning of an unpacked file; `path` (its name tells MGH from NIfTI) is for messages.

    Raises UserError for what is no header, for more than one three-dimensional image, for more than 512^3 voxels, for
    numbers that are not plain intensities, and where orientation or size are unknown or contradictory.
    """
    try:
        parse = _parse_mgh if str(path).lower().endswith((".mgz", ".mgh")) else _parse_nifti
        header = parse(block, path)
    except UserError:
        raise
    except Exception as error:  # nibabel raises many kinds for a header that makes no sense
        raise UserError(f"{path}: not a readable image header ({error}). Convert the scan again.") from error
    _check_affine(header.affine, path)
    return header


def _parse_nifti(block: bytes, path: object) -> Header:
    kind = next(((cls, size) for magic, (cls, at, size) in _NIFTI.items() if block[at : at + 4] == magic), None)
    if kind is None or len(block) < kind[1]:
        pair = block[344:348] == b"ni1\0" or block[4:8] == b"ni2\0"
        why = "its voxels lie in a second file (.img)" if pair else "no NIfTI header at its beginning"
        raise UserError(f"{path}: not a readable NIfTI image, {why}. Convert it to NIfTI-1 in one file (.nii.gz).")
    header = kind[0](block[: kind[1]], check=False)
    number = int(header["dim"][0])
    if not 1 <= number <= 7:
        raise UserError(f"{path}: its header says {number} dimensions; the header is damaged. Convert the scan again.")
    shape = _three_sides([int(side) for side in header["dim"][1 : number + 1]], path)
    dtype = _plain_numbers(header, path)
    offset = float(header["vox_offset"])
    if not (kind[1] + 4 <= offset <= MAX_OFFSET and offset == int(offset)):
        raise UserError(
            f"{path}: its header puts the first voxel at byte {offset:g}; {kind[1] + 4} to {MAX_OFFSET} is possible. "
            "The header is damaged. Convert the scan again."
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):  # NIfTI: no scaling
        slope, intercept = 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise UserError(f"{path}: intensities scaled by slope {slope:g} and intercept {intercept:g} mean nothing.")
    unit = _UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        raise UserError(f"{path}: its header gives lengths in {unit}. Convert it to mm.")
    affine, notes = _orientation(header, shape, path)
    return Header(shape, dtype, int(offset), slope, intercept, affine, notes=notes)


def _parse_mgh(block: bytes, path: object) -> Header:
    if len(block) < _MGH_OFFSET or struct.unpack(">i", block[:4]) != (1,):
        raise UserError(f"{path}: not a readable MGH image, no header at its beginning. Convert it to .nii.gz.")
    if struct.unpack(">h", block[28:30]) == (0,):
        raise UserError(f"{path}: says nothing of its orientation (goodRASFlag 0), so left cannot be told from right.")
    header = nib.MGHImage.header_class(block[:_MGH_OFFSET], check=False)
    shape = _three_sides([int(side) for side in header["dims"]], path)
    dtype = _plain_numbers(header, path)
    return Header(shape, dtype, _MGH_OFFSET, 1.0, 0.0, np.asarray(header.get_affine(), np.float64), _MGH_FOOTER)


def _three_sides(sides: Sequence[int], path: object) -> tuple[int, int, int]:
    shape = "x".join(map(str, sides))
    if any(side < 1 for side in sides):
        raise UserError(f"{path}: its header says shape {shape}. The header is damaged; convert the scan again.")
    kept = list(sides)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) != 3:
        raise UserError(
            f"{path}: {len(sides)} dimensions, shape {shape}. One three-dimensional T1w volume is wanted; extract it "
            "(for one frame of several: `fslroi` or nibabel's slicer) and try again."
        )
    if min(kept) == 1:
        raise UserError(f"{path}: shape {shape} is a single slice. A whole three-dimensional T1w volume is wanted.")
    if math.prod(kept) > MAX_VOXELS:
        raise UserError(
            f"{path}: its header says {shape} voxels; at most {MAX_VOXELS:,} (512x512x512) are read. Resample the scan "
            "to 0.5 mm or more; if it is no such scan, the header is damaged."
        )
    return tuple(kept)


def _plain_numbers(header: nib.spatialimages.SpatialHeader, path: object) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        what = "complex numbers" if dtype.kind == "c" else "colours (RGB)"
        raise UserError(f"{path}: its voxels are {what}; one intensity per voxel is wanted. Convert it (magnitude).")
    return dtype


def _orientation(header: nib.Nifti1Header, shape: Sequence[int], path: object) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine to go by, and a note where there was a choice.

    sform and qform of one code, or of opposite handedness, must agree. Of different codes they may both be right
    (scanner and standard space): the sform counts unless it stretches the head, then the qform.
    """
    pixdim = header["pixdim"][1:4].astype(np.float64)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise UserError(
            f"{path}: its header says voxels of {format_shape(pixdim)} mm. Set their size (pixdim) to what it is."
        )
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform <= 0 and qform <= 0:
        raise UserError(
            f"{path}: neither sform nor qform is set, so its orientation is unknown. "
            "Convert it from DICOM again, or set the orientation if you know it (`fslorient`, nibabel)."
        )
    if sform <= 0:
        return np.asarray(header.get_qform(), np.float64), ()
    affine = np.asarray(header.get_sform(), np.float64)
    _check_affine(affine, path)
    rigid = np.allclose(np.linalg.norm(affine[:3, :3], axis=0), pixdim, rtol=SIZE_TOLERANCE)
    if qform <= 0:
        if not rigid:
            raise UserError(
                f"{path}: the voxels have {format_shape(pixdim)} mm by the header's pixdim and "
                f"{format_shape(np.linalg.norm(affine[:3, :3], axis=0))} mm by its sform. Correct the wrong one."
            )
        return affine, ()
    other = np.asarray(header.get_qform(), np.float64)
    apart = _corners_apart_mm(affine, other, shape)
    if apart <= FORMS_APART_MM:
        return affine, ()
    flipped = np.linalg.det(affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0
    if flipped or sform == qform:
        raise UserError(
            f"{path}: sform (code {sform}, axes {_axes(affine)}) and qform (code {qform}, axes {_axes(other)}) place "
            f"its corners up to {apart:.1f} mm apart{' and swap left and right' if flipped else ''}. Find out which is "
            "right and copy it over the other (`fslorient -copysform2qform` or `-copyqform2sform`)."
        )
    chosen = affine if rigid else other
    name = "sform" if rigid else "qform, because the sform stretches the head"
    return chosen, (f"sform (code {sform}) and qform (code {qform}) lie {apart:.1f} mm apart; taken: {name}",)


def _check_affine(affine: np.ndarray, path: object) -> None:
    linear = affine[:3, :3]
    size = np.linalg.norm(linear, axis=0)
    if not np.isfinite(affine).all() or not (size > 0).all():
        raise UserError(f"{path}: its affine is zero or not finite, so nothing is known of its orientation and size.")
    cosines = np.abs((linear / size).T @ (linear / size) - np.eye(3))
    if abs(np.linalg.det(linear / size)) < 1e-3:
        raise UserError(f"{path}: its affine is singular: two of its axes point the same way. Convert the scan again.")
    if cosines.max() > SIZE_TOLERANCE:
        angle = 90 - math.degrees(math.acos(min(float(cosines.max()), 1.0)))
        raise UserError(f"{path}: its axes are {angle:.1f} degrees off the right angle (sheared). Resample it first.")
    if not ((size >= VOXEL_MM[0]) & (size <= VOXEL_MM[1])).all():
        raise UserError(
            f"{path}: voxels of {format_shape(size)} mm; {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm can be a head."
        )


def _corners_apart_mm(one: np.ndarray, two: np.ndarray, shape: Sequence[int]) -> float:
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return float(np.linalg.norm(((one - two) @ corners.T)[:3], axis=0).max())


def _axes(affine: np.ndarray) -> str:
    return "".join(nib.aff2axcodes(affine))
