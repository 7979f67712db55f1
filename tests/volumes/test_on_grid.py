"""Volumes on a training grid: the same values in either order and through an unpacked copy; what is odd is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from brainldm.data.pipeline import VolumeSource, load_image
from brainldm.datasets.scans import Scan
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import read_volume, write_volume
from brainldm.volumes.on_grid import read_on_grid

GRID = training_grid(4)


def volume(index=0, grid=GRID):
    return np.random.default_rng(index).random(grid.shape, dtype=np.float32)


def record(path):
    return Scan("sub-1", None, path, {})


def raw(path, data, affine=GRID.affine, slope=None, intercept=None, kind=nib.Nifti1Image):
    """A file of any type, as nibabel writes it."""
    image = kind(data, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    path.write_bytes(image.to_bytes())
    return path


STORED = {
    "int16": (np.int16, 3e-5, 0.0),
    "int16 without slope": (np.int16, None, None),
    "int16 with intercept": (np.int16, 0.0123, -3.7),
    "uint8": (np.uint8, 1 / 255, 0.0),
    "uint16": (np.uint16, 0.3, 0.1),
    "int32": (np.int32, 0.3, 0.0),
    "float64": (np.float64, 0.3, 0.0),
    "float32": (np.float32, None, None),
    "float32 with slope": (np.float32, 0.7, 0.0),
}


@pytest.mark.parametrize("name", STORED)
def test_both_orders_hold_the_same_values_bit_for_bit(tmp_path, name):
    dtype, slope, intercept = STORED[name]
    data = (volume() * 200).astype(dtype)
    path = raw(tmp_path / "a.nii", data, slope=slope, intercept=intercept)
    batch, plain = read_volume(path, order="C"), read_volume(path)
    np.testing.assert_array_equal(batch.data, plain.data)
    np.testing.assert_array_equal(batch.affine, plain.affine)
    assert batch.data.dtype == np.float32 and batch.data.flags.c_contiguous and plain.data.flags.f_contiguous


def left_handed(path):
    affine = GRID.affine.copy()
    affine[0] = [-4, 0, 0, affine[0, 3] + 4 * (GRID.shape[0] - 1)]
    return raw(path, (volume()[::-1] * 1000).astype(np.int16), affine)


def cut(path):
    write_volume(path, volume(), GRID.affine)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def big_endian(path):
    image = nib.Nifti1Image((volume() * 1000).astype(">i2"), GRID.affine, nib.Nifti1Header(endianness=">"))
    path.write_bytes(image.to_bytes())
    return path


ODD = {
    "left-handed": left_handed,
    "big-endian": big_endian,
    "float64": lambda path: raw(path, volume().astype(np.float64)),
    "NIfTI-2": lambda path: raw(path, (volume() * 1000).astype(np.int16), kind=nib.Nifti2Image),
    "one frame": lambda path: raw(path, (volume()[..., None] * 1000).astype(np.int16)),
}
BROKEN = {
    "cut off": cut,
    "NaN": lambda path: raw(path, np.where(volume() > 0.99, np.nan, volume()).astype(np.float32)),
    "infinite": lambda path: raw(path, np.where(volume() > 0.99, np.inf, volume()).astype(np.float32)),
    "constant": lambda path: raw(path, np.full(GRID.shape, 5, np.int16)),
    "empty": lambda path: path.write_bytes(b"") and path or path,
    "text": lambda path: path.write_bytes(b"no image " * 100) and path,
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_read_all_the_same(tmp_path, name):
    path = ODD[name](tmp_path / "a.nii")
    image = load_image(record(path), GRID)
    assert (image.min(), image.max()) == (0, 1)
    assert np.corrcoef(image.ravel(), volume().ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_by_name(tmp_path, name):
    path = BROKEN[name](tmp_path / "a.nii")
    with pytest.raises(UserError, match="a.nii"):
        load_image(record(path), GRID)


def edited(path, **fields):
    """A sound file with other fields in its header."""
    write_volume(path, volume(), GRID.affine)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


def mirrored(path):
    """The qform swaps left and right, where the sform does not."""
    affine = GRID.affine.copy()
    affine[0] = [-4, 0, 0, affine[0, 3] + 4 * (GRID.shape[0] - 1)]
    header = nib.Nifti1Header()
    header.set_qform(affine, code=4)
    return edited(path, **{name: header[name] for name in QFORM}, pixdim=[header["pixdim"][0], 4, 4, 4, 1, 1, 1, 1])


def longer(path):
    write_volume(path, volume(), GRID.affine)
    path.write_bytes(path.read_bytes() + bytes(5000))
    return path


QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
CONTRADICTORY = {
    "a qform that mirrors the sform": (mirrored, "swap left and right"),
    "a qform 20 mm off": (lambda path: edited(path, qoffset_y=GRID.affine[1, 3] + 20), "20.0 mm apart"),
    "lengths in micrometres": (lambda path: edited(path, xyzt_units=3), "micrometres"),
    "1 mm by pixdim, 4 mm by the sform": (
        lambda path: edited(path, pixdim=[1, 1, 1, 1, 1, 1, 1, 1], qform_code=0),
        "1x1x1 mm by the header's pixdim",
    ),
    "longer than its header says": (longer, "holds more than"),
}


@pytest.mark.parametrize("name", CONTRADICTORY)
def test_a_batch_takes_no_file_that_contradicts_itself(tmp_path, name):
    make, said = CONTRADICTORY[name]
    path = make(tmp_path / "a.nii")
    with pytest.raises(UserError, match=said):
        load_image(record(path), GRID)
    with pytest.raises(UserError, match=said):
        read_volume(path)


def test_an_absent_file_is_refused(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(UserError, match=name):
            read_on_grid(tmp_path / name, GRID, tmp_path / "cache")


@pytest.mark.parametrize("spacing", [4, 2])
def test_unpacked_copies_change_nothing_and_are_read_from_then_on(tmp_path, monkeypatch, spacing):
    fine = training_grid(spacing)
    path = tmp_path / "a.nii.gz"
    write_volume(path, volume(grid=fine), fine.affine)
    plain = load_image(record(path), GRID)
    first = load_image(record(path), GRID, cache_dir=tmp_path / "cache")
    (copy,) = (tmp_path / "cache").iterdir()
    assert copy.stat().st_size < 352 + 8 + 4 * np.prod(GRID.shape)
    monkeypatch.setattr("brainldm.volumes.on_grid._unpack", lambda *_: pytest.fail("unpacked again"))
    again = load_image(record(path), GRID, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(plain, first)
    np.testing.assert_array_equal(plain, again)


def test_a_damaged_or_outdated_copy_is_made_again(tmp_path):
    path, cache = tmp_path / "a.nii.gz", tmp_path / "cache"
    write_volume(path, volume(), GRID.affine)
    plain = load_image(record(path), GRID, cache_dir=cache)
    (copy,) = cache.iterdir()
    copy.write_bytes(copy.read_bytes()[:5000])
    np.testing.assert_array_equal(load_image(record(path), GRID, cache_dir=cache), plain)
    write_volume(path, volume(1), GRID.affine)
    assert not np.array_equal(load_image(record(path), GRID, cache_dir=cache), plain)


def test_compressed_float64_is_unpacked_as_float32(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(volume().astype(np.float64), GRID.affine).to_bytes()))
    image = load_image(record(path), GRID, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(image, load_image(record(path), GRID))
    assert [p.stat().st_size for p in (tmp_path / "cache").iterdir()] == [352 + 4 * volume().size]


def test_a_source_knows_what_it_would_unpack_again_and_again(tmp_path):
    write_volume(tmp_path / "a.nii.gz", volume(), GRID.affine)
    write_volume(tmp_path / "b.nii", volume(1), GRID.affine)
    records = [record(tmp_path / name) for name in ("a.nii.gz", "b.nii")]

    def source(gib, cache_dir=""):
        return VolumeSource(records, np.zeros((2, 1)), GRID, "minmax", gib, cache_dir)

    assert (source(1).fits, source(1).unpacks_in_every_epoch) == (True, 0)
    assert (source(0).fits, source(0).unpacks_in_every_epoch) == (False, 1)
    assert source(0, tmp_path / "cache").unpacks_in_every_epoch == 0
