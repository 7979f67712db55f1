"""The latent cache: what was encoded comes back, once, and nothing else is taken for it."""

import json

import numpy as np
import pytest

from brainldm.data.latents import CachedLatents, LatentCache, SampledLatents, content_id, variant_rng
from brainldm.data.pipeline import LatentSource, batches
from brainldm.datasets.scans import Scan
from brainldm.runtime.errors import UserError

IDENTITY = {
    "autoencoder_sha256": "a" * 64,
    "dtype": "float32",
    "latent_shape": (2, 3, 2, 1),
    "variants": 1,
    "augment": None,
}


def records(folder, count, first=0):
    """Scans whose image file is the text of their number."""
    made = []
    for i in range(first, first + count):
        path = folder / f"sub-{i:03d}.txt"
        path.write_text(str(i) * 50)
        made.append(Scan(f"sub-{i:03d}", None, path, {}))
    return made


def load(record):
    return np.full((4, 6, 4), float(record.participant_id[4:]), np.float32)


class Encoder:
    """Block means as the posterior mean and a tenth of them as its deviation; counts, and may stop as a kill would."""

    def __init__(self, stop_after=None):
        self.batches, self.images, self.stop_after = [], 0, stop_after

    def __call__(self, images):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(images.shape)
        self.images += len(images)
        mean = images.reshape(len(images), 2, 2, 3, 2, 2, 2, 1).mean((2, 4, 6))
        return mean, mean / 10


def vary(image, rng):
    return image + rng.normal(0, 0.01, image.shape).astype(np.float32)


def encode(folder, scans, encoder=None, identity=IDENTITY, **options):
    cache = LatentCache(folder, identity)
    options = {"batch_size": 4, "shard_scans": 3, "vary": vary, "seed": 1, **options}
    missing = cache.missing(scans)
    if missing:
        cache.encode_missing(missing, load, encoder or Encoder(), **options)
    return cache


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_encoded_comes_back(tmp_path):
    scans, encoder = records(tmp_path, 8), Encoder()
    cache = encode(tmp_path / "cache", scans, encoder)
    assert set(encoder.batches) == {(4, 4, 6, 4, 1)}
    again = LatentCache(tmp_path / "cache", IDENTITY)
    assert len(again) == 8 and not again.missing(scans)
    for number, scan in enumerate(scans):
        np.testing.assert_array_equal(again.read(scan.name), np.full((2, 3, 2, 1), number, np.float32))
        np.testing.assert_allclose(again.read(scan.name, kind="std"), number / 10)
    assert len(list((tmp_path / "cache").glob("*_mean.npy"))) == 3  # shards of 3, 3 and 2
    assert not list((tmp_path / "cache").glob("*.tmp"))
    names = [scan.name for scan in scans[2:]]
    assert again.std(names) == cache.std(names) == pytest.approx(np.std([2, 3, 4, 5, 6, 7]))


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_encoding_goes_on_and_gives_the_same_files(tmp_path, stop_after):
    scans = records(tmp_path, 14)
    straight = Encoder()
    encode(tmp_path / "straight", scans, straight)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "cache", scans, Encoder(stop_after))
    rest = Encoder()
    encode(tmp_path / "cache", scans, rest)
    assert rest.images < straight.images
    assert contents(tmp_path / "cache") == contents(tmp_path / "straight")


def test_a_complete_cache_encodes_nothing(tmp_path):
    scans = records(tmp_path, 5)
    encode(tmp_path / "cache", scans)
    encoder = Encoder()
    encode(tmp_path / "cache", scans, encoder)
    assert encoder.batches == []


def test_scans_that_join_are_added_and_the_others_kept(tmp_path):
    scans = records(tmp_path, 5)
    encode(tmp_path / "cache", scans)
    before = contents(tmp_path / "cache")
    encoder = Encoder()
    cache = encode(tmp_path / "cache", [*scans, *records(tmp_path, 2, first=5)], encoder)
    assert encoder.images == 4 and len(cache) == 7
    after = contents(tmp_path / "cache")
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    "change", [{"autoencoder_sha256": "b" * 64}, {"variants": 2}, {"dtype": "bfloat16"}, {"spacing_mm": 2}]
)
def test_a_cache_of_something_else_is_refused(tmp_path, change):
    encode(tmp_path / "cache", records(tmp_path, 3))
    with pytest.raises(UserError, match=rf"not of this run \({next(iter(change))}: .*config.latents.path"):
        LatentCache(tmp_path / "cache", {**IDENTITY, **change})


def test_an_image_that_has_changed_is_refused_and_one_that_is_gone_is_not_missed(tmp_path):
    scans = records(tmp_path, 4)
    encode(tmp_path / "cache", scans)
    scans[1].path.unlink()
    assert LatentCache(tmp_path / "cache", IDENTITY).missing(scans) == []
    scans[2].path.write_text("7" * 50)  # of the same size
    with pytest.raises(UserError, match=f"1 images are not those that were encoded, first {scans[2].path}"):
        LatentCache(tmp_path / "cache", IDENTITY).missing(scans)


def spoil_json(path):
    path.write_text(path.read_text()[:-20])


def spoil_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "pattern, spoil",
    [
        ("*_mean.npy", spoil_bit),
        ("*_std.npy", spoil_bit),
        ("*_mean.npy", lambda path: path.write_bytes(path.read_bytes()[:-4])),
        ("*_std.npy", lambda path: path.unlink()),
        ("[0-9a-f]*[0-9a-f].json", spoil_json),
    ],
)
def test_a_damaged_shard_is_encoded_again(tmp_path, capsys, pattern, spoil):
    scans = records(tmp_path, 9)
    encode(tmp_path / "cache", scans)
    before = contents(tmp_path / "cache")
    spoil(sorted(p for p in (tmp_path / "cache").glob(pattern) if p.name != "index.json")[1])
    encoder = Encoder()
    encode(tmp_path / "cache", scans, encoder)
    assert "1 damaged" in capsys.readouterr().err
    assert encoder.images == 4  # three scans in a batch of four
    assert contents(tmp_path / "cache") == before


def test_a_file_that_is_cut_off_while_in_use_is_refused(tmp_path):
    scans = records(tmp_path, 3)
    cache = encode(tmp_path / "cache", scans)
    file = next((tmp_path / "cache").glob("*_mean.npy"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="too short"):
        cache.read("sub-002")
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        cache.read("sub-000")


def test_processes_read_their_rows_and_share_out_the_shards(tmp_path):
    scans = records(tmp_path, 11)
    encode(tmp_path / "one", scans)
    caches = [LatentCache(tmp_path / "two", IDENTITY) for _ in range(2)]  # both begin before either has written

    def images(rows):
        return np.stack([load(scan) for scan in rows])[..., None]

    for index, cache in enumerate(caches):
        given = []

        def encoded(own, given=given):  # the whole batch, of which a process gives its half
            start = 4 * len(given)
            given.append(own)
            return Encoder()(images([scans[min(i, 10)] for i in range(start, start + 4)]))

        cache.encode_missing(
            scans,
            load,
            encoded,
            batch_size=4,
            process_shard=(index, 2),
            shard_scans=3,
            process_index=index,
            process_count=2,
        )
        rows = [scans[min(4 * n + 2 * index + k, 10)] for n in range(3) for k in range(2)]
        np.testing.assert_array_equal(np.concatenate(given), images(rows))
        assert len(cache) == 11 and not cache.missing(scans)  # it knows what the other writes
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    np.testing.assert_array_equal(caches[0].read("sub-004"), caches[1].read("sub-004"))


VARIED = {**IDENTITY, "variants": 3, "augment": {"affine_probability": 1.0}}


def test_variants_are_the_scan_and_changed_copies_of_it(tmp_path):
    scans = records(tmp_path, 7)
    cache = encode(tmp_path / "cache", scans, identity=VARIED)
    plain, one, two = (cache.read("sub-004", variant) for variant in range(3))
    np.testing.assert_array_equal(plain, np.full((2, 3, 2, 1), 4, np.float32))
    assert np.abs(one - plain).max() > 1e-4 and np.abs(one - two).max() > 1e-4
    expected, _ = Encoder()(vary(load(scans[4]), variant_rng(1, "sub-004", 2))[None, ..., None])
    np.testing.assert_array_equal(two, expected[0])
    # a scan's variants do not depend on the others
    np.testing.assert_array_equal(encode(tmp_path / "few", scans[4:], identity=VARIED).read("sub-004", 2), two)


def test_draws_take_every_variant_and_follow_seed_and_place(tmp_path):
    scans = records(tmp_path, 5)
    cache = encode(tmp_path / "cache", scans, identity=VARIED)
    names = [scan.name for scan in scans]
    source = SampledLatents(cache, names, np.zeros((5, 2)), sample=False)
    dataset = batches(source, batch_size=5, seed=3, transform=source.sample)
    known = {cache.read(name, v).tobytes(): (i, v) for i, name in enumerate(names) for v in range(3)}
    seen = set()
    for number in range(12):
        batch = dataset[number]
        for latent, index in zip(batch["latent"], batch["index"], strict=True):
            scan, variant = known[latent.tobytes()]
            assert scan == index
            seen.add(variant)
    assert seen == {0, 1, 2}
    again = batches(source, batch_size=5, seed=3, transform=source.sample)[7]["latent"]
    np.testing.assert_array_equal(again, dataset[7]["latent"])


def test_samples_have_the_mean_and_deviation_of_the_posterior(tmp_path):
    scans = records(tmp_path, 6)
    cache = encode(tmp_path / "cache", scans)
    source = SampledLatents(cache, ["sub-005"], np.zeros((1, 2)), sample=True)
    dataset = batches(source, batch_size=1, seed=3, transform=source.sample)
    drawn = np.stack([dataset[k]["latent"] for k in range(300)])
    assert drawn.mean() == pytest.approx(5, abs=0.03) and drawn.std() == pytest.approx(0.5, rel=0.05)


def test_means_are_a_source_for_batches(tmp_path):
    scans = records(tmp_path, 6)
    cache = encode(tmp_path / "cache", scans)
    source = LatentSource(CachedLatents(cache, [scan.name for scan in scans]), np.zeros((6, 2)))
    batch = batches(source, batch_size=4, seed=0)[2]
    np.testing.assert_array_equal(batch["latent"][:, 0, 0, 0, 0], batch["index"])


def test_latents_that_are_not_finite_name_the_scan(tmp_path):
    def bad(images):
        mean = np.where(images == 2, np.nan, images)
        return mean[:, :2, :3, :2], mean[:, :2, :3, :2]

    with pytest.raises(FloatingPointError, match="sub-002"):
        encode(tmp_path / "cache", records(tmp_path, 3), bad)


def test_marks_tell_files_of_one_size_apart(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    data = np.random.default_rng(0).bytes(300_000)
    one.write_bytes(data)
    two.write_bytes(data[:150_000] + b"x" + data[150_001:])
    assert content_id(one) != content_id(two) and content_id(one) == content_id(one)
    assert content_id(tmp_path / "none") is None and content_id(None) is None


def test_forty_thousand_scans_are_ready(tmp_path):
    """The cache of a dataset as large as the largest, with tiny latents: opened, split from nothing, first batch."""
    count = 40_000
    scans = [Scan(f"sub-{i:05d}", None, None, {}) for i in range(count)]
    cache = LatentCache(tmp_path, IDENTITY)
    cache.encode_missing(
        scans, lambda record: np.zeros((4, 6, 4), np.float32), Encoder(), batch_size=256, threads=0, shard_scans=512
    )
    cache = LatentCache(tmp_path, IDENTITY)
    assert cache.missing(scans) == []
    names = [scan.name for scan in scans]
    assert cache.std(names) == 0
    batch = batches(LatentSource(CachedLatents(cache, names), np.zeros((count, 4))), batch_size=4, seed=0)[10**6]
    assert batch["latent"].shape == (4, 2, 3, 2, 1)
    assert json.loads((tmp_path / "index.json").read_text())["variants"] == 1
