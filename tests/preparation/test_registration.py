"""Registration to the template: known transforms found again, the same bits each time, wrong fits told apart."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainldm.preparation import registration
from brainldm.preparation.registration import LIMITS, REGISTERED_LIMITS, assess_fit, find_skull, register
from brainldm.runtime.errors import UserError
from brainldm.volumes.geometry import background_value
from brainldm.volumes.nifti import Volume, read_volume
from brainldm.volumes.template import load_template

pytest.importorskip("SimpleITK", reason="registration needs the extra brainldm[prepare]")

CENTRE = np.array([0.0, -20.0, 10.0])


@pytest.fixture(scope="module")
def template():
    found = load_template(2)
    return Volume(found.t1, found.grid.affine), found.mask


def random_move(rng, degrees=20, mm=20):
    """A rotation about three axes and a shift along three, [4, 4]."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
    move[:3, 3] = CENTRE + rng.uniform(-mm, mm, 3) - move[:3, :3] @ CENTRE
    return move


def moved(volume, move, rng=None, margin=16):
    """The volume resampled so that what was at x lies at `move` x, with noise and a bias field if there is `rng`."""
    shape = tuple(side + 2 * margin for side in volume.data.shape)
    affine = volume.affine.copy()
    affine[:3, 3] -= volume.affine[:3, :3] @ np.full(3, margin)
    matrix = np.linalg.inv(volume.affine) @ np.linalg.inv(move) @ affine
    data = ndimage.affine_transform(volume.data, matrix[:3, :3], matrix[:3, 3], shape, order=1, output=np.float32)
    if rng is not None:
        field = ndimage.zoom(
            ndimage.gaussian_filter(rng.standard_normal((5, 6, 5)), 0.8), np.divide(shape, (5, 6, 5)), order=1
        )
        brain = data > 0
        data = data * np.exp(0.1 * field / field.std()) + 0.03 * rng.standard_normal(shape)
        data = np.where(brain, np.maximum(data, 1e-3), 0).astype(np.float32)
    return Volume(data, affine)


def errors(scan_to_template, template_to_scan):
    """Rotation left (degrees) and shift of the brain's centre left (mm)."""
    left = scan_to_template @ template_to_scan
    shift = left[:3, :3] @ CENTRE + left[:3, 3] - CENTRE
    return np.degrees(Rotation.from_matrix(left[:3, :3]).magnitude()), np.linalg.norm(shift)


@pytest.mark.parametrize("seed", range(4))
def test_a_known_transform_of_the_template_is_found(template, seed):
    rng = np.random.default_rng([7, seed])
    move = random_move(rng)
    found = register(moved(template[0], move, rng))
    rotation, shift = errors(found.scan_to_template, move)
    assert rotation < 0.5 and shift < 0.5
    assert found.skull == "stripped" and abs(found.scale - 1) < 0.02
    assert found.similarity > 0.8 and found.overlap > 0.95 and found.coverage == 1


def test_a_small_brain_stays_centred_and_keeps_its_size(template):
    volume, mask = template
    shrunk = np.diag([0.85, 0.85, 0.85, 1.0])
    shrunk[:3, 3] = [7, -4, 9]
    found = register(Volume(volume.data, shrunk @ volume.affine))
    assert abs(found.scale - 0.85) < 0.01
    np.testing.assert_allclose(np.linalg.det(found.scan_to_template[:3, :3]), 1, atol=1e-9)
    centre = volume.affine[:3, :3] @ np.argwhere(mask).mean(0) + volume.affine[:3, 3]
    in_scan = shrunk[:3, :3] @ centre + shrunk[:3, 3]
    assert np.linalg.norm(found.scan_to_template[:3, :3] @ in_scan + found.scan_to_template[:3, 3] - centre) < 0.3


def test_the_same_scan_gives_the_same_bits(template):
    rng = np.random.default_rng(3)
    scan = moved(template[0], random_move(rng), rng)
    itk = registration.require_simpleitk().ProcessObject
    before = itk.GetGlobalDefaultNumberOfThreads()
    try:
        itk.SetGlobalDefaultNumberOfThreads(1)
        first = register(scan)
        itk.SetGlobalDefaultNumberOfThreads(3)  # another machine
        register(template[0])  # another past of the process
        second = register(scan)
        assert itk.GetGlobalDefaultNumberOfThreads() == 3
    finally:
        itk.SetGlobalDefaultNumberOfThreads(before)
    assert first.scan_to_template.tobytes() == second.scan_to_template.tobytes()
    assert (first.scale, first.similarity, first.overlap) == (second.scale, second.similarity, second.overlap)


@pytest.mark.parametrize("wrong", ["upside down", "back to front", "noise in its shape", "half of it"])
def test_a_wrong_fit_is_below_the_limits(template, wrong):
    data = template[0].data
    if wrong == "upside down":
        data = data[:, :, ::-1]
    elif wrong == "back to front":
        data = data[:, ::-1]
    elif wrong == "noise in its shape":
        noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(data.shape), 1.5)
        data = np.where(data > 0, 0.5 + noise, 0)
    else:
        data = np.where(np.arange(data.shape[2]) < data.shape[2] // 2, data, 0)
    found = register(Volume(np.ascontiguousarray(data, np.float32), template[0].affine))
    similarity, overlap = LIMITS[found.skull]
    assert found.similarity < similarity or found.overlap < overlap


def test_a_scan_registered_elsewhere_is_judged_where_it_lies(template):
    volume = template[0]
    assert assess_fit(volume).similarity > 0.99
    limit = REGISTERED_LIMITS["stripped"][0]
    near, far = np.eye(4), np.eye(4)
    near[2, 3], far[2, 3] = 4, 25
    assert assess_fit(Volume(volume.data, near @ volume.affine)).similarity > limit
    assert assess_fit(Volume(volume.data, far @ volume.affine)).similarity < limit
    np.testing.assert_allclose(assess_fit(volume).scan_to_template, np.eye(4), atol=1e-9)


def test_heads_and_brains_are_told_apart():
    grid = np.indices((60, 60, 60)) - 29.5
    radius = np.sqrt((grid**2).sum(0)) * 4
    noise = np.random.default_rng(0).random((60, 60, 60)).astype(np.float32)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    brain, head = np.where(radius < 70, 1 + noise, 0), np.where(radius < 95, 1 + noise, 0)
    assert find_skull(Volume(brain, affine)) == "stripped"
    assert find_skull(Volume(head, affine)) == "whole"
    assert find_skull(Volume(brain + 0.1 * noise, affine)) == "whole"
    assert find_skull(Volume(brain - 1024, affine)) == "stripped"
    assert background_value(brain - 1024) == -1024


def test_without_simpleitk_it_is_said_what_to_install(template, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(registration.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"brainldm\[prepare\]"):
        register(template[0])
    assess_fit(template[0])


@pytest.mark.parametrize("name", ["ixi_2mm/IXI013-HH-1212-T1_ds.nii.gz", "native/1003_SS.nii.gz"])
def test_a_real_scan_is_found_again_after_a_disturbance(shared, name):
    """A head and a brain: turned and shifted by up to 20 degrees and mm, they land where they did before."""
    path = shared / "data" / name
    scan = read_volume(path)
    before = register(scan)
    similarity, overlap = LIMITS[before.skull]
    assert before.similarity > similarity + 0.1 and before.overlap > overlap + 0.05
    move = random_move(np.random.default_rng(5))
    after = register(Volume(scan.data, move @ scan.affine))
    rotation, shift = errors(after.scan_to_template @ move, np.linalg.inv(before.scan_to_template))
    assert rotation < 0.5 and shift < 0.5
    assert after.skull == before.skull == ("whole" if "ixi" in name else "stripped")
