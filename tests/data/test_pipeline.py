"""Batches: the same for any number of processes, resumed from a step, random changes included; and the split."""

import threading
import time

import numpy as np
import pytest

from brainldm.data.pipeline import LatentSource, VolumeSource, batches, iterate, read_ahead
from brainldm.datasets.scans import Scan
from brainldm.datasets.splits import split, split_three
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid


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


def people(count, **options):
    return [Scan(f"sub-{i:03d}", s, None, {}, **options) for i in range(count) for s in ("ses-1", "ses-2")]


def test_three_sides_are_disjoint_and_stay_when_others_join():
    few, many = split_three(people(150), 0.1, 0.2), split_three(people(300), 0.1, 0.2)
    sets = {name: {r.participant_id for r in records} for name, records in few.items()}
    assert not sets["train"] & sets["validation"] and not sets["test"] & (sets["train"] | sets["validation"])
    assert sum(map(len, few.values())) == 300
    assert 5 <= len(sets["validation"]) <= 25 and 18 <= len(sets["test"]) <= 42
    for name, records in few.items():
        assert {r.name for r in records} <= {r.name for r in many[name]}


def test_a_test_side_moves_nobody_into_validation():
    without, some = split_three(people(200), 0.1), split_three(people(200), 0.1, 0.3)
    assert without["test"] == [] and without["validation"] == some["validation"]
    assert split(people(200), 0.1, 0.3) == (some["train"], some["validation"])


@pytest.mark.parametrize("fractions", [(0.6, 0.4), (0.5, 0.9), (-0.1, 0.0), (0.1, -0.2)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(fractions):
    with pytest.raises(UserError, match="validation_fraction"):
        split_three(people(20), *fractions)


def test_a_column_of_splits_counts_instead_of_the_fractions():
    sides = ["train", "test", "validation", "train"]
    records = [Scan(f"sub-{i}", None, None, {}, split=side) for i, side in enumerate(sides)]
    found = split_three(records, 0.5, 0.4)
    assert {name: [r.name for r in rows] for name, rows in found.items()} == {
        "train": ["sub-0", "sub-3"],
        "validation": ["sub-2"],
        "test": ["sub-1"],
    }


@pytest.mark.parametrize(
    "rows, said",
    [
        ([("a", "train"), ("b", "validation"), ("b", "train")], "sub-b is in two splits, validation and train"),
        ([("a", "train"), ("b", None)], "sub-b_ses-1 has no split"),
        ([("a", "train"), ("b", "holdout")], "split 'holdout'"),
        ([("a", "train"), ("b", "test")], "no participant has 'validation'"),
    ],
)
def test_columns_of_splits_that_cannot_be_followed_are_refused(rows, said):
    records = [Scan(f"sub-{p}", f"ses-{i}", None, {}, split=side) for i, (p, side) in enumerate(rows)]
    with pytest.raises(UserError, match=said):
        split_three(records, 0.1)


def test_forty_thousand_records_cost_little_before_the_first_batch(tmp_path):
    began = time.monotonic()
    records = [Scan(f"sub-{i:05d}", None, tmp_path / f"sub-{i:05d}.nii", {}) for i in range(40_000)]
    train, validation = split(records, 0.0125)
    assert 400 < len(validation) < 600
    volumes = VolumeSource(train, np.zeros((len(train), 4)), training_grid(1), "minmax", cache_gib=4)
    assert not volumes.fits and len(batches(volumes, batch_size=1, seed=0)) > 10**9
    latents = np.zeros((len(train), 2, 2, 2, 1), np.float32)
    iterator = iterate(batches(LatentSource(latents, volumes.conditions), batch_size=4, seed=0), 1_000_000)
    assert next(iterator)["latent"].shape == (4, 2, 2, 2, 1)
    assert time.monotonic() - began < 30
