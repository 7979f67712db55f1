"""Images on a grid, and batches: the same for any number of processes, resumed from a step, random changes included."""

import threading
import time

import numpy as np
import pytest

from brainldm.data.pipeline import LatentSource, VolumeSource, batches, iterate, load_image, read_ahead
from brainldm.datasets.scans import Scan
from brainldm.datasets.splits import split
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume

GRID = training_grid(4)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder, scans = tmp_path_factory.mktemp("volumes"), []
    for index in range(5):
        path = folder / f"sub-{index}.nii.gz"
        write_volume(path, np.random.default_rng(index).random(GRID.shape, dtype=np.float32), GRID.affine)
        scans.append(Scan(f"sub-{index}", None, path, {}))
    conditions = np.random.default_rng(9).random((5, 4), dtype=np.float32)
    return VolumeSource(scans, conditions, GRID, "none", cache_gib=1)


def test_finer_volumes_are_averaged_onto_the_grid(tmp_path):
    fine = training_grid(2)
    data = np.random.default_rng(0).random(fine.shape, dtype=np.float32)
    write_volume(tmp_path / "a.nii.gz", data, fine.affine)
    image = load_image(Scan("sub-1", None, tmp_path / "a.nii.gz", {}), GRID, "none")
    assert image.shape == GRID.shape
    assert image[3, 4, 5] == pytest.approx(data[6:8, 8:10, 10:12].mean(), abs=1e-4)


def test_minmax_scaling(tmp_path):
    data = np.random.default_rng(0).random(GRID.shape, dtype=np.float32) * 900 + 100
    write_volume(tmp_path / "a.nii.gz", data, GRID.affine, scale_max=1000)
    record = Scan("sub-1", None, tmp_path / "a.nii.gz", {})
    image = load_image(record, GRID)
    assert (image.min(), image.max()) == (0, 1)
    with pytest.raises(UserError, match="wants them in"):
        load_image(record, GRID, "none")


@pytest.mark.parametrize("shape, shift", [((40, 56, 38), 0), ((40, 56, 40), 7)])
def test_volumes_of_another_shape_or_place_are_refused(tmp_path, shape, shift):
    affine = GRID.affine.copy()
    affine[0, 3] += shift
    write_volume(tmp_path / "a.nii.gz", np.random.rand(*shape), affine)
    with pytest.raises(UserError, match=r"a.nii.gz.*does not fit the training grid 40x56x40"):
        load_image(Scan("sub-1", None, tmp_path / "a.nii.gz", {}), GRID)


def test_a_batch_depends_on_seed_and_number_alone(volumes):
    once = batches(volumes, batch_size=2, seed=3)
    again = batches(volumes, batch_size=2, seed=3)
    for number in (7, 0, 7, 3):
        one, two = once[number], again[number]
        np.testing.assert_array_equal(one["index"], two["index"])
        np.testing.assert_array_equal(one["image"], two["image"])
    assert any((once[k]["index"] != batches(volumes, batch_size=2, seed=4)[k]["index"]).any() for k in range(5))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_iterating_from_the_middle_goes_on_where_it_stopped(volumes, size):
    dataset = batches(volumes, batch_size=size, seed=0)
    iterator = iterate(dataset, 4)
    for number in (4, 5, 6):
        np.testing.assert_array_equal(next(iterator)["index"], dataset[number]["index"])


def test_every_epoch_is_another_permutation(volumes):
    dataset = batches(volumes, batch_size=5, seed=1)
    epochs = [tuple(dataset[k]["index"].tolist()) for k in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_the_cache_changes_nothing(volumes):
    without = VolumeSource(volumes.scans, volumes.conditions, GRID, "none", cache_gib=0)
    for _ in range(2):
        np.testing.assert_array_equal(without[2]["image"], volumes[2]["image"])


def source(count=11):
    latents = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1, 1) * np.ones((1, 2, 2, 2, 3), np.float32)
    return LatentSource(latents, np.arange(count, dtype=np.float32)[:, None])


def noisy(element, rng):
    return {**element, "latent": element["latent"] + rng.standard_normal(element["latent"].shape, np.float32)}


@pytest.mark.parametrize("transform", [None, noisy])
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_share_out_the_batches_of_one(processes, transform):
    options = {"batch_size": 8, "seed": 5, "transform": transform}
    whole = batches(source(), **options)
    parts = [batches(source(), **options, process_index=index, process_count=processes) for index in range(processes)]
    for number in (0, 1, 2, 37):  # 37 lies several epochs on; batches cross the ends of epochs
        rows = [part[number] for part in parts]
        for key in ("latent", "condition", "index"):
            np.testing.assert_array_equal(np.concatenate([row[key] for row in rows]), whole[number][key])


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(UserError, match=r"batch_size 6 cannot be shared out evenly among 4.*8"):
        batches(source(), batch_size=6, seed=0, process_count=4)


@pytest.mark.parametrize("threads, prefetch", [(0, 0), (1, 1), (3, 0), (2, 16)])
def test_threads_and_prefetch_change_no_batch(threads, prefetch):
    dataset = batches(source(), batch_size=3, seed=2, transform=noisy)
    iterator = iterate(dataset, 5, threads, prefetch)
    for number in range(5, 12):
        batch = next(iterator)
        for key, value in dataset[number].items():
            np.testing.assert_array_equal(batch[key], value)


def test_a_scan_is_changed_differently_each_time_it_is_drawn():
    dataset = batches(source(3), batch_size=3, seed=0, transform=noisy)
    drawn = [dict(zip(dataset[k]["index"].tolist(), dataset[k]["latent"], strict=True))[1] for k in range(6)]
    assert len({value.tobytes() for value in drawn}) == 6
    other = batches(source(3), batch_size=3, seed=1, transform=noisy)
    assert other[0]["latent"].tobytes() != dataset[0]["latent"].tobytes()


def test_a_transform_does_not_change_the_order():
    plain, changed = (batches(source(), batch_size=4, seed=9, transform=t) for t in (None, noisy))
    for number in range(8):
        np.testing.assert_array_equal(plain[number]["index"], changed[number]["index"])


def test_reading_ahead_keeps_the_order_and_a_bound():
    active, most, lock = 0, 0, threading.Lock()

    def slow(item):
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        time.sleep(0.002 * (item % 3))
        with lock:
            active -= 1
        return item

    for threads in (0, 1, 3):
        assert list(read_ahead(slow, range(20), threads, 4)) == list(range(20))
    assert 1 < most <= 3
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda item: 1 // item, [2, 1, 0, 3], 2, 2))


def test_of_forty_thousand_scans_none_is_read_before_the_first_batch(tmp_path):
    scans = [Scan(f"sub-{i:05d}", None, tmp_path / f"sub-{i:05d}.nii", {}) for i in range(40_000)]
    train, validation = split(scans, 0.0125)
    assert 400 < len(validation) < 600
    volumes = VolumeSource(train, np.zeros((len(train), 4)), training_grid(1), "minmax", cache_gib=4)
    assert not volumes.fits and len(batches(volumes, batch_size=1, seed=0)) > 10**9
    latents = np.zeros((len(train), 2, 2, 2, 1), np.float32)
    iterator = iterate(batches(LatentSource(latents, volumes.conditions), batch_size=4, seed=0), 1_000_000)
    assert next(iterator)["latent"].shape == (4, 2, 2, 2, 1)
