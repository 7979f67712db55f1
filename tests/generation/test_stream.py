"""Brains in memory."""

import itertools

import numpy as np
import pytest
from fake_generation import draw as write_dataset
from fake_generation import fake_model, fake_sampler

from brainldm.diffusion.sampling import Sampling
from brainldm.generation import dataset, regenerate, stream
from brainldm.generation.dataset import Settings
from brainldm.generation.manifest import read_manifests
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import read_volume


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    for module in (dataset, regenerate):
        monkeypatch.setattr(module, "make_sampler", module.make_sampler)
    monkeypatch.setattr(stream, "make_sampler", fake_sampler())


def some(count, **options):
    return list(itertools.islice(stream.stream(fake_model(), seed=3, batch_size=2, **options), count))


def test_a_stream_gives_the_brains_that_generate_writes(tmp_path):
    write_dataset(tmp_path / "out", 6)
    for brain, entry in zip(some(6), read_manifests(tmp_path / "out"), strict=True):
        assert (brain.index, brain.conditions) == (entry["index"], entry["conditions"])
        stored = read_volume(tmp_path / "out" / entry["file"]).data
        np.testing.assert_allclose(brain.volume, stored, atol=1 / 32767)


def test_readers_share_a_stream_and_one_can_go_on():
    alone = {brain.index: brain for brain in some(8)}
    shared = [brain for k in (1, 2) for brain in some(4, shard=(k, 2))]
    assert sorted(brain.index for brain in shared) == list(range(8))
    for brain in [*shared, *some(4, start=4)]:
        assert brain.conditions == alone[brain.index].conditions
        np.testing.assert_array_equal(brain.volume, alone[brain.index].volume)


def test_what_is_asked_of_a_stream_is_kept():
    assert {brain.conditions["age"] for brain in some(5, fixed={"age": "60"})} == {60.0}
    with pytest.raises(UserError, match="shards are"):
        some(1, shard=(3, 2))


def test_an_array_of_brains():
    rows = [brain.conditions for brain in some(5)]
    volumes = stream.draw(fake_model(), rows, seed=3, batch_size=2)
    np.testing.assert_array_equal(volumes, np.stack([brain.volume for brain in some(5)]))
    with pytest.raises(UserError, match="age 95"):
        stream.draw(fake_model(), [{**rows[0], "age": 95.0}])


def test_a_generated_dataset_is_a_source_of_batches(tmp_path, monkeypatch):
    import grain.python as grain

    model = fake_model(training_grid(4))
    rows = [brain.conditions for brain in some(2)]
    monkeypatch.setattr(dataset, "make_sampler", fake_sampler(shape=model.spec.grid.shape))
    dataset.generate(model, tmp_path / "out", rows, Settings(Sampling(2), batch_size=2))
    source = stream.generated_source(tmp_path / "out", model)
    batch = next(iter(grain.MapDataset.source(source).batch(2)))
    assert batch["image"].shape == (2, *model.spec.grid.shape, 1) and batch["condition"].shape == (2, 4)
    entries = list(read_manifests(tmp_path / "out"))
    assert batch["image"].mean(axis=(1, 2, 3, 4)) == pytest.approx([entry["mean"] for entry in entries], abs=1e-4)
