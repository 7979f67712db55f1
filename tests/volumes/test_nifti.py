"""Volumes in and out: every broken file found, every sound one read in its place."""

import errno
import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.headers import read_header
from brainldm.volumes.nifti import block_average, read_volume, write_volume

AFFINE = training_grid(4).affine


@pytest.fixture
def image():
    return np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)


def test_what_is_written_is_read(tmp_path, image):
    write_volume(tmp_path / "a.nii.gz", image, AFFINE, "SYNTHETIC test")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data, image, atol=1 / 32767)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header.get_data_dtype() == np.int16
    assert header["descrip"].tobytes().startswith(b"SYNTHETIC test")
    assert int(header["sform_code"]) == int(header["qform_code"]) == 4


def test_the_slope_does_not_depend_on_the_image(tmp_path, image):
    write_volume(tmp_path / "a.nii.gz", image, AFFINE)
    write_volume(tmp_path / "b.nii.gz", image / 10, AFFINE)
    slopes = [nib.load(tmp_path / name).dataobj.slope for name in ("a.nii.gz", "b.nii.gz")]
    assert slopes[0] == slopes[1] == pytest.approx(1 / 32767)


def test_bytes_are_the_same_each_time_and_nothing_is_left_over(tmp_path, image):
    first = write_volume(tmp_path / "a.nii.gz", image, AFFINE)
    second = write_volume(tmp_path / "b.nii.gz", image, AFFINE)
    assert first == second == (tmp_path / "a.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_other_orientations_become_ras(tmp_path, image):
    flipped = np.diag([-4.0, 4, 4, 1])
    flipped[0, 3] = 4 * (image.shape[0] - 1)
    nib.save(nib.Nifti1Image(image[::-1], flipped), tmp_path / "las.nii.gz")
    volume = read_volume(tmp_path / "las.nii.gz")
    np.testing.assert_array_equal(volume.data, image)
    np.testing.assert_array_equal(volume.affine, np.diag([4.0, 4, 4, 1]))


def test_slope_intercept_and_uncompressed_files(tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    scaled = nib.Nifti1Image(stored, AFFINE)
    scaled.header.set_slope_inter(0.5, 2.0)
    nib.save(scaled, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").data, stored * 0.5 + 2.0)


def nifti(data, affine=AFFINE, kind=nib.Nifti1Image, **fields):
    """The bytes of a NIfTI file, with fields of its header set as given."""
    image = kind(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    content = bytearray(image.to_bytes())
    header = np.ndarray((), image.header.template_dtype, content)
    for name, value in fields.items():
        header[name] = value
    return bytes(content)


def dims(*sides):
    return [len(sides), *sides, *[1] * (7 - len(sides))]


def with_nan(image, value=np.nan):
    changed = image.copy()
    changed[1, 1, :2] = value
    return changed


def pair_of_files(image):
    return nib.Nifti1Pair(image, AFFINE).header.binaryblock + b"\0" * 4


def sheared():
    affine = AFFINE.copy()
    affine[0, 1] = 1.0
    return affine


def zipped(content):
    return gzip.compress(content, 1)


def corrupted(content, place):
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def two_spaces_swapped(image):
    """sform and qform of different codes, one of which takes left for right."""
    made = nib.Nifti1Image(image, AFFINE)
    made.set_sform(AFFINE, 4)
    made.set_qform(np.diag([-4.0, 4, 4, 1]), 1)
    return made.to_bytes()


def moved_qform(image, mm):
    made = nib.Nifti1Image(image, AFFINE)
    moved = AFFINE.copy()
    moved[2, 3] += mm
    made.set_sform(AFFINE, 1)
    made.set_qform(moved, 1)
    return made.to_bytes()


def mgh(image, **fields):
    made = nib.MGHImage(image, AFFINE)
    content = bytearray(made.to_bytes())
    for place, value in fields.items():
        content[int(place[2:])] = value
    return bytes(content)


# What is wrong: (file name, bytes as a function of a good image, what the message says)
BROKEN = {
    "cut in half": ("a.nii.gz", lambda i: zipped(nifti(i))[: len(zipped(nifti(i))) // 2], "damaged or cut off"),
    "wrong checksum": ("a.nii.gz", lambda i: corrupted(zipped(nifti(i)), -8), "damaged.*CRC"),
    "wrong length in the trailer": ("a.nii.gz", lambda i: corrupted(zipped(nifti(i)), -2), "damaged.*length"),
    "a flipped bit inside": ("a.nii.gz", lambda i: corrupted(zipped(nifti(i)), 700), "damaged"),
    "no trailer": ("a.nii.gz", lambda i: zipped(nifti(i))[:-8], "damaged"),
    "garbage after the stream": ("a.nii.gz", lambda i: zipped(nifti(i)) + b"garbage", "damaged"),
    "a second stream after it": ("a.nii.gz", lambda i: zipped(nifti(i)) + zipped(b"more"), "holds more than the"),
    "more voxels than the header says": ("a.nii.gz", lambda i: zipped(nifti(i) + b"xx"), "holds more than the"),
    "fewer voxels, compressed": ("a.nii.gz", lambda i: zipped(nifti(i)[:-8]), "cut off, 1688 bytes .*says 1696"),
    "fewer voxels": ("a.nii", lambda i: nifti(i)[:-8], "cut off, 1688 bytes .*says 1696"),
    "more voxels": ("a.nii", lambda i: nifti(i) + b"\0", "holds more than the 1696 bytes"),
    "header alone": ("a.nii", lambda i: nifti(i)[:352], "cut off, 352 bytes"),
    "half a header": ("a.nii", lambda i: nifti(i)[:200], "no NIfTI header"),
    "not gzip": ("a.nii.gz", lambda i: b"this is no image", "named as gzip and is not"),
    "NIfTI named as gzip": ("a.nii.gz", nifti, "named as gzip and is not"),
    "gzip not named so": ("a.nii", lambda i: zipped(nifti(i)), "named as uncompressed and is gzip"),
    "something else in gzip": ("a.nii.gz", lambda i: zipped(b"x" * 1000), "not a readable NIfTI image"),
    "empty": ("a.nii.gz", lambda i: b"", "empty"),
    "nothing in gzip": ("a.nii.gz", lambda i: zipped(b""), "no NIfTI header"),
    "header of two files": ("a.nii", pair_of_files, "second file"),
    "64 TB by the header": ("a.nii", lambda i: nifti(i, dim=dims(20000, 20000, 20000)), "20000x.*at most 134,217,728"),
    "just above the limit": ("a.nii", lambda i: nifti(i, dim=dims(512, 512, 513)), "at most 134,217,728"),
    "negative side": ("a.nii", lambda i: nifti(i, dim=dims(6, -7, 8)), "shape 6x-7x8"),
    "zero side": ("a.nii", lambda i: nifti(i, dim=dims(6, 0, 8)), "shape 6x0x8"),
    "no dimensions": ("a.nii", lambda i: nifti(i, dim=[0] * 8), "0 dimensions"),
    "a line": ("a.nii", lambda i: nifti(i[0, 0]), "1 dimensions"),
    "2D": ("a.nii.gz", lambda i: zipped(nifti(i[0])), "2 dimensions"),
    "one slice": ("a.nii", lambda i: nifti(i[:, :, :1]), "single slice"),
    "4D": ("a.nii.gz", lambda i: zipped(nifti(np.stack([i] * 2, -1))), "4 dimensions, shape 6x7x8x2"),
    "5D": ("a.nii.gz", lambda i: zipped(nifti(np.stack([i] * 3, -1)[..., None, :])), "5 dimensions"),
    "NaN": ("a.nii", lambda i: nifti(with_nan(i)), r"2 voxels are NaN or infinite \(of 336\)"),
    "infinite": ("a.nii.gz", lambda i: zipped(nifti(with_nan(i, np.inf))), "2 voxels are NaN or infinite"),
    "too large for float32": ("a.nii", lambda i: nifti(with_nan(i.astype(np.float64), 1e300)), "2 voxels are NaN"),
    "constant": ("a.nii", lambda i: nifti(np.ones_like(i)), "same value"),
    "constant by its slope": ("a.nii", lambda i: nifti(i, scl_slope=1e-40, scl_inter=7), "same value"),
    "infinite slope": ("a.nii", lambda i: nifti(i, scl_slope=np.inf), "slope inf"),
    "slope without intercept": ("a.nii", lambda i: nifti(i, scl_slope=2, scl_inter=np.nan), "intercept nan"),
    "complex": ("a.nii", lambda i: nifti(i.astype(np.complex64)), "complex"),
    "colours": ("a.nii", lambda i: nifti(i, datatype=128, bitpix=24), "colours"),
    "unknown type": ("a.nii", lambda i: nifti(i, datatype=77), "not a readable image header"),
    "first voxel inside the header": ("a.nii", lambda i: nifti(i, vox_offset=0), "first voxel at byte 0"),
    "first voxel far away": ("a.nii", lambda i: nifti(i, vox_offset=1e12), "first voxel at byte 1e"),
    "no orientation": ("a.nii", lambda i: nifti(i, sform_code=0, qform_code=0), "orientation is unknown"),
    "zero affine": ("a.nii", lambda i: nifti(i, srow_x=0, srow_y=0, srow_z=0), "affine is zero"),
    "singular affine": ("a.nii", lambda i: nifti(i, srow_x=[4, 4, 0, 0], srow_y=[4, 4, 0, 0]), "singular"),
    "affine with NaN": ("a.nii", lambda i: nifti(i, srow_x=[np.nan, 0, 0, 0]), "affine is zero or not finite"),
    "sheared": ("a.nii", lambda i: nifti(i, sheared(), qform_code=0), "degrees off the right angle"),
    "zero voxel size": ("a.nii", lambda i: nifti(i, pixdim=[1, 4, 0, 4, 0, 0, 0, 0]), "voxels of 4x0x4 mm"),
    "pixdim against sform": ("a.nii", lambda i: nifti(i, qform_code=0, pixdim=[1, 1, 4, 4] + [0] * 4), "1x4x4 mm by"),
    "in metres": ("a.nii", lambda i: nifti(i, xyzt_units=1), "lengths in metres"),
    "voxels of a mouse": ("a.nii", lambda i: nifti(i, np.diag([0.01, 0.01, 0.01, 1])), "0.01x0.01x0.01 mm"),
    "sform against qform": ("a.nii", lambda i: moved_qform(i, 5), r"RAS.*RAS.*up to 5.0 mm apart"),
    "left or right": ("a.nii", two_spaces_swapped, "LAS.*swap left and right"),
    "MGH cut off": ("a.mgh", lambda i: mgh(i)[:1000], "cut off, 1000 bytes"),
    "MGH of unknown orientation": ("a.mgh", lambda i: mgh(i, at28=0, at29=0), "goodRASFlag"),
    "NIfTI named as MGH": ("a.mgh", nifti, "not a readable MGH image"),
    "MGZ without trailer": ("a.mgz", lambda i: zipped(mgh(i))[:-8], "damaged"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_every_broken_file_is_found_and_named(tmp_path, image, wrong):
    name, content, said = BROKEN[wrong]
    path = tmp_path / name
    path.write_bytes(content(image))
    with pytest.raises(UserError, match=said) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make, said", [(lambda p: p.mkdir(), "folder"), (os.mkfifo, "no ordinary file")])
def test_what_is_no_file_is_not_opened(tmp_path, make, said):
    make(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=f"a.nii.gz: cannot be read, it is .*{said}"):
        read_volume(tmp_path / "a.nii.gz")


def test_an_absent_file(tmp_path):
    with pytest.raises(UserError, match="a.nii.gz: cannot be read .No such file"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_file_without_permission(tmp_path, image, monkeypatch):
    write_volume(tmp_path / "a.nii", image, AFFINE)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # permissions do not stop root, who may run the tests
    with pytest.raises(UserError, match="a.nii: cannot be read .Permission denied.*permissions"):
        read_volume(tmp_path / "a.nii")


def test_a_bomb_is_not_unpacked(tmp_path, image):
    good = nifti(image)
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as file:
        file.write(good)
        for _ in range(256):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match="holds more than the 1696 bytes"):
        read_volume(tmp_path / "a.nii.gz")
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 4 * 2**20


def test_a_large_header_over_a_small_file_takes_no_memory(tmp_path, image):
    (tmp_path / "a.nii").write_bytes(nifti(image, dim=dims(512, 512, 512)))
    tracemalloc.start()
    with pytest.raises(UserError, match="cut off, 1696 bytes"):
        read_volume(tmp_path / "a.nii")
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 2**20


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", "<>")
def test_every_kind_of_number_in_either_byte_order(tmp_path, kind, order):
    stored = np.arange(60, dtype=kind).reshape(3, 4, 5)
    made = nib.Nifti1Image(stored, AFFINE, nib.Nifti1Header(endianness=order))
    made.header.set_data_dtype(kind)
    made.header.set_slope_inter(1, 0)
    path = tmp_path / "a.nii"
    path.write_bytes(made.to_bytes())
    assert nib.load(path).header.endianness == order
    np.testing.assert_array_equal(read_volume(path).data, stored)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_means_stored_values(tmp_path, image, slope):
    (tmp_path / "a.nii").write_bytes(nifti(image, scl_slope=slope, scl_inter=3))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, image)


def rotation(*degrees):
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPI", "PSR", "LIA", "ASL", "SAR", "IPL"])
@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_every_voxel_keeps_its_place_in_the_world(tmp_path, image, axes, oblique, form):
    """Stored in any order and handedness, a voxel is found at the same world position after reading."""
    codes = nib.orientations.axcodes2ornt(axes)
    affine = nib.orientations.inv_ornt_aff(codes, image.shape)
    affine = np.diag([1.0, 0.7, 5.0, 1]) @ affine
    affine[:3, :3] = (rotation(12, -8, 20) if oblique else np.eye(3)) @ affine[:3, :3]
    affine[:3, 3] += (3, -40, 9)
    made = nib.Nifti1Image(image, affine)
    made.set_sform(affine, 1 if form == "sform" else 0)
    made.set_qform(affine, 1 if form == "qform" else 0)
    nib.save(made, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert sorted(np.round(volume.spacing_mm, 3)) == [0.7, 1.0, 5.0]
    assert volume.anisotropy == pytest.approx(5 / 0.7, rel=1e-4)
    for place in ((0, 0, 0), (1, 2, 3), (5, 6, 7)):
        world = affine @ [*place, 1]
        i, j, k = np.rint(np.linalg.solve(volume.affine, world)[:3]).astype(int)
        assert volume.data[i, j, k] == image[place]
        np.testing.assert_allclose(volume.affine @ [i, j, k, 1], world, atol=1e-3)


def test_one_frame_is_one_volume(tmp_path, image):
    for extra in ((..., None), (..., None, None)):
        (tmp_path / "a.nii").write_bytes(nifti(image[extra]))
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, image)


def test_small_differences_of_the_forms_are_rounding(tmp_path, image):
    (tmp_path / "a.nii").write_bytes(moved_qform(image, 0.4))
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.notes == ()


@pytest.mark.parametrize("stretch, chosen", [(1.0, "sform"), (1.1, "qform")])
def test_scanner_and_standard_space_in_one_header(tmp_path, image, stretch, chosen):
    """Both may be right; the one that keeps the size of the head is taken, and it is said."""
    standard = AFFINE.copy()
    standard[:3, :3] *= stretch
    standard[:3, 3] += 20
    made = nib.Nifti1Image(image, AFFINE)
    made.set_qform(AFFINE, 1)
    made.set_sform(standard, 4)
    (tmp_path / "a.nii").write_bytes(made.to_bytes())
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine, standard if chosen == "sform" else AFFINE, atol=1e-4)
    assert len(volume.notes) == 1 and f"taken: {chosen}" in volume.notes[0]


def test_padding_and_several_streams_are_as_gzip_allows(tmp_path, image):
    content = nifti(image)
    (tmp_path / "a.nii.gz").write_bytes(zipped(content[:900]) + zipped(content[900:]) + bytes(512))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, image)


def test_nifti_2_and_extensions(tmp_path, image):
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        made = kind(image, AFFINE)
        made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
        nib.save(made, tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, image)


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
def test_freesurfer_volumes(tmp_path, image, name):
    turned = np.diag([-4.0, 4, 4, 1])
    nib.save(nib.MGHImage(image, turned), tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.data, image[::-1])
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")


def test_a_header_alone(tmp_path, image):
    write_volume(tmp_path / "a.nii.gz", image, np.diag([-0.7, 0.7, 5, 1]))
    header = read_header(tmp_path / "a.nii.gz")
    assert (header.shape, header.orientation, header.dtype) == (image.shape, "LAS", np.int16)
    np.testing.assert_allclose(header.spacing_mm, [0.7, 0.7, 5], rtol=1e-6)
    with pytest.raises(UserError, match="no NIfTI header"):
        (tmp_path / "b.nii").write_bytes(b"text")
        read_header(tmp_path / "b.nii")


def test_real_scans_as_nibabel_reads_them(shared):
    """Sound files of several programs and orientations: the same voxels and places, none refused."""
    files = [*shared.glob("data/native/*_SS.nii.gz"), *shared.glob("data/ixi_2mm/*_ds.nii.gz")]
    files += [shared / "data/native/visualqc_id001_orig.mgz", shared / "data/native/t1_crop_wholehead_brainchop.nii.gz"]
    for path in files:
        volume, expected = read_volume(path), nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(volume.data, np.asarray(expected.dataobj, np.float32))
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    assert len(files) == 8


def test_nothing_that_is_not_finite_is_written(tmp_path, image):
    image[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        write_volume(tmp_path / "a.nii.gz", image, AFFINE)
    assert not list(tmp_path.iterdir())


def test_block_average_keeps_the_mean():
    data = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    small = block_average(data, 2)
    assert small.shape == (2, 2, 2)
    assert small[0, 0, 0] == data[:2, :2, :2].mean()
    assert small.mean() == data.mean()


def test_grids_cover_the_same_box():
    for spacing in (1, 2, 4):
        grid = training_grid(spacing)
        first = grid.affine @ [-0.5, -0.5, -0.5, 1]
        last = grid.affine @ [*(np.array(grid.shape) - 0.5), 1]
        np.testing.assert_allclose(first[:3], [-80.5, -129.5, -75.5])
        np.testing.assert_allclose(last[:3], [79.5, 94.5, 84.5])
        assert grid.voxel_ml == pytest.approx(spacing**3 / 1000)
    with pytest.raises(UserError, match="1, 2, 4"):
        training_grid(3)
