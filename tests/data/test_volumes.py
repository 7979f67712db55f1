"""NIfTI in and out."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from brainldm.data.grids import training_grid
from brainldm.data.volumes import block_average, read_volume, write_volume
from brainldm.errors import UserError

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


def broken(kind, path, image):
    good = gzip.compress(nib.Nifti1Image(image, AFFINE).to_bytes())
    if kind == "cut off":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "checksum":
        path.write_bytes(good[:-8] + bytes([good[-8] ^ 1]) + good[-7:])
    elif kind == "no trailer":
        path.write_bytes(good[:-8])
    elif kind == "not gzip":
        path.write_bytes(b"this is no image")
    elif kind == "not NIfTI":
        path.write_bytes(gzip.compress(b"x" * 1000))
    elif kind == "folder":
        path.mkdir()
    elif kind in ("4D", "one frame", "2D"):
        shaped = {"4D": np.stack([image] * 2, -1), "one frame": image[..., None], "2D": image[0]}[kind]
        nib.save(nib.Nifti1Image(shaped, AFFINE), path)
    elif kind in ("NaN", "inf", "constant"):
        bad = np.ones_like(image) if kind == "constant" else image.copy()
        bad[1, 1, 1] = {"NaN": np.nan, "inf": np.inf, "constant": 1}[kind]
        nib.save(nib.Nifti1Image(bad, AFFINE), path)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("cut off", "damaged"),
        ("checksum", "damaged"),
        ("no trailer", "damaged"),
        ("not gzip", "damaged"),
        ("not NIfTI", "not a readable NIfTI"),
        ("folder", "cannot be read"),
        ("absent", "cannot be read"),
        ("4D", "4 dimensions"),
        ("one frame", "4 dimensions"),
        ("2D", "2 dimensions"),
        ("NaN", "1 voxels are NaN"),
        ("inf", "1 voxels are NaN or infinite"),
        ("constant", "same value"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, image, kind, said):
    path = tmp_path / "scan.nii.gz"
    broken(kind, path, image)
    with pytest.raises(UserError, match=said) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


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
