"""NIfTI in and out: the only place that reads a volume and the only place that writes one."""

from __future__ import annotations

import dataclasses
import gzip
import os
import tempfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from brainldm.errors import UserError

INT16_MAX = 32767


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional image: `data` float32 [D, H, W] in RAS order and its `affine` [4, 4] in mm."""

    data: np.ndarray
    affine: np.ndarray


def read_volume(path: str | os.PathLike) -> Volume:
    """Read a NIfTI file (.nii or .nii.gz) as float32 in RAS order, slope and intercept applied.

    The whole gzip stream is read and its checksum verified, because nibabel alone accepts damaged streams.
    Raises UserError for a file that is absent, damaged, not NIfTI, not three-dimensional, or that holds
    NaN or infinite voxels or one value everywhere.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    if path.name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path}: damaged or cut off, the gzip stream does not end well ({error}). Copy the file again."
            ) from error
    try:
        kind = nib.Nifti2Image if content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else nib.Nifti1Image
        image = kind.from_bytes(content)
        shape = image.shape
        data = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # nibabel raises many kinds for a file that is not what it says
        raise UserError(f"{path}: not a readable NIfTI image ({error}). Convert it to NIfTI-1 (.nii.gz).") from error
    if len(shape) != 3:
        raise UserError(
            f"{path}: {len(shape)} dimensions, shape {'x'.join(map(str, shape))}. One three-dimensional T1w volume "
            "is wanted; extract it (for one frame of several: `fslroi` or nibabel's slicer) and try again."
        )
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise UserError(f"{path}: {bad} voxels are NaN or infinite. Replace them (by 0 in the background) first.")
    if data.size == 0 or data.min() == data.max():
        raise UserError(f"{path}: every voxel has the same value, so there is no image in it. Leave it out.")
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, image.affine))
    return Volume(np.asarray(canonical.dataobj, np.float32), canonical.affine)


def write_volume(
    path: str | os.PathLike,
    data: np.ndarray,
    affine: np.ndarray,
    description: str = "",
    scale_max: float = 1.0,
) -> bytes:
    """Write `data` [D, H, W] as int16 with a fixed slope, `scale_max` being the largest value that can be stored.

    The slope is the same for every image, so intensities stay comparable between images. `description`
    (at most 79 characters) goes into the header. The bytes depend on the arguments alone, and the file appears
    whole or not at all. Returns the bytes written. Raises ValueError for data that is not finite or not 3D.
    """
    data = np.asarray(data)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise ValueError(f"a finite three-dimensional array is wanted, got shape {data.shape}")
    slope = scale_max / INT16_MAX
    stored = np.clip(np.rint(data / slope), -INT16_MAX, INT16_MAX).astype(np.int16)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm")
    # code 4: the training box lies in MNI152 space
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    image.header["descrip"] = description.encode()[:79]
    content = image.to_bytes()
    path = Path(path)
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    write_atomically(path, content)
    return content


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file or none: into a temporary file of the same folder, flushed, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def block_average(data: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of factor^3 voxels, [D, H, W] -> [D/factor, H/factor, W/factor] (anti-aliased downsampling)."""
    d, h, w = (side // factor for side in data.shape)
    return data.reshape(d, factor, h, factor, w, factor).mean(axis=(1, 3, 5), dtype=np.float32)
