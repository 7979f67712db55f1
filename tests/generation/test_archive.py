"""Generated datasets whose brains lie in tars."""

import errno
import itertools
import json
import multiprocessing
import subprocess
import tarfile
import time

import fake_generation
import numpy as np
import pytest
from bids_validator import bids_errors
from fake_generation import draw, fake_model, fake_sampler

from brainldm.cli import main
from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation import archive, dataset, regenerate, stream
from brainldm.generation.conditions import draw_conditions
from brainldm.generation.dataset import Settings, generate
from brainldm.generation.finalize import finalize
from brainldm.generation.manifest import read_manifests, write_manifest
from brainldm.generation.regenerate import regenerate as draw_again
from brainldm.generation.status import read_status, verify
from brainldm.runtime.errors import BrainldmError, Stopped, UserError
from brainldm.volumes.grids import training_grid


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    for module in (dataset, regenerate):
        monkeypatch.setattr(module, "make_sampler", module.make_sampler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten brains of one undisturbed run in one tar. Tests read it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (dataset, regenerate):
            patch.setattr(module, "make_sampler", module.make_sampler)
        out = tmp_path_factory.mktemp("archive") / "out"
        draw(out, archive="tar")
    return out


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, to be damaged."""
    draw(tmp_path / "out", archive="tar")
    return tmp_path / "out"


def content(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def unpacked(out, to):
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(to, filter="data")
    return to


def flip(out, place):
    tar = bytearray((out / "brains-0000.tar").read_bytes())
    tar[place] ^= 1
    (out / "brains-0000.tar").write_bytes(tar)


def test_the_tar_holds_the_images_of_loose_files_with_their_conditions_in_order(whole, tmp_path):
    draw(tmp_path / "loose")
    loose = {name: found for name, found in content(tmp_path / "loose").items() if name.endswith("_T1w.nii.gz")}
    found = content(unpacked(whole, tmp_path / "unpacked"))
    assert {name: found[name] for name in loose} == loose and len(found) == 20
    with tarfile.open(whole / "brains-0000.tar") as tar:
        names = tar.getnames()
    keys = [key for key, _ in itertools.groupby(name.partition(".")[0] for name in names)]
    assert len(keys) == len(set(keys)) == 10 and keys == sorted(keys)
    for entry in read_manifests(whole):
        said = json.loads(found[entry["file"].replace(".nii.gz", ".json")])
        assert (said["id"], said["conditions"]) == (entry["id"], entry["conditions"])
    assert not list(whole.glob("sub-*"))
    tables = ("participants.tsv", "T1w.json", "README", "CHANGES")
    assert all((whole / name).read_bytes() == (tmp_path / "loose" / name).read_bytes() for name in tables)


def test_the_sums_are_of_the_tars_and_the_validator_finds_no_error_in_what_they_hold(whole, copy):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=whole, capture_output=True, text=True)
    assert done.returncode == 0 and "brains-0000.tar: OK" in done.stdout
    unpacked(copy, copy)
    assert bids_errors(copy) == [] and verify(copy, full=True) == (10, {})


def test_the_same_command_on_a_finished_dataset_draws_nothing(copy, whole, monkeypatch):
    monkeypatch.setattr(fake_generation, "use_fake_sampler", lambda **options: None)
    monkeypatch.setattr(dataset, "make_sampler", None)
    draw(copy, archive="tar")
    assert content(copy) == content(whole)
    for change in ({}, {"archive": "tar", "count": 9}):
        with pytest.raises(UserError, match="was begun as another dataset"):
            draw(copy, **change)


@pytest.mark.parametrize("part", ["image", "header", "conditions"])
def test_one_changed_bit_is_found_and_the_brain_drawn_again_in_its_place(copy, whole, part):
    entry = list(read_manifests(copy))[3]
    flip(copy, {"image": entry["offset"] + 30, "header": entry["begin"] + 5, "conditions": entry["end"] - 600}[part])
    assert verify(copy, full=True) == (10, {"sub-0004": "missing" if part == "header" else "changed"})
    with pytest.raises(BrainldmError, match="sub-0004 is"):
        finalize(copy)
    draw(copy, archive="tar", verify=True)
    assert content(copy) == content(whole)


@pytest.mark.parametrize("left", [0, 700, 5000, -1500, -600])
def test_a_torn_tar_is_whole_again_after_the_same_command(copy, whole, left):
    tar = (copy / "brains-0000.tar").read_bytes()
    (copy / "brains-0000.tar").write_bytes(tar[:left])
    if left > -1024:
        assert read_status(copy).bad > 0 or left == -600
    assert verify(copy)[1]
    draw(copy, archive="tar")
    assert content(copy) == content(whole)


def test_a_tar_that_is_gone_or_strange_is_seen(copy, whole):
    (copy / "brains-0001.tar").write_bytes(b"?")
    with (copy / "brains-0000.tar").open("ab") as file:
        file.write(b"more")
    assert verify(copy) == (10, {"brains-0001.tar": "in no manifest", "brains-0000.tar": "of another length"})
    assert main(["finalize", str(copy)]) == 1
    (copy / "brains-0001.tar").unlink()
    (copy / "brains-0000.tar").unlink()
    assert read_status(copy).bad == 10
    draw(copy, archive="tar")
    assert content(copy) == content(whole)


def test_a_kill_between_a_tidied_tar_and_its_manifest_costs_brains_and_no_truth(copy, whole):
    entries = list(read_manifests(copy))
    archive.tidy(copy / "brains-0000.tar", [*entries[:2], *entries[4:]])
    assert read_status(copy).bad > 2
    draw(copy, archive="tar")
    assert content(copy) == content(whole)


@pytest.mark.parametrize(
    "change", [{"archive": "../a.tar"}, {"offset": 1}, {"end": "x"}, {"span_sha256": None}], ids=str
)
def test_a_line_with_an_odd_place_counts_as_none(copy, whole, change):
    entries = list(read_manifests(copy))
    write_manifest(copy / "manifest-0000.jsonl", [*entries[:5], {**entries[5], **change}, *entries[6:]])
    assert read_status(copy).missing == 1
    draw(copy, archive="tar")
    assert content(copy) == content(whole)


def test_brains_that_are_no_images_leave_no_trace(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(fake_generation, "fake_sampler", lambda **options: fake_sampler(bad=(4,)))
    with pytest.raises(BrainldmError, match="not finite"):
        draw(tmp_path / "out", archive="tar")
    assert read_status(tmp_path / "out").missing == 1
    monkeypatch.setattr(fake_generation, "fake_sampler", fake_sampler)
    draw(tmp_path / "out", archive="tar")
    assert content(tmp_path / "out") == content(whole)


def test_a_full_disk_ends_as_a_stop_and_the_run_goes_on(tmp_path, whole, monkeypatch):
    def append(file, packed):
        if file.tell() > 9000:
            file.write(packed[0].packed[:900])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, packed)

    real = archive.append
    monkeypatch.setattr(archive, "append", append)
    with pytest.raises(Stopped, match="No space left .* Make room"):
        draw(tmp_path / "out", archive="tar")
    monkeypatch.setattr(archive, "append", real)
    assert 0 < read_status(tmp_path / "out").done < 10
    draw(tmp_path / "out", archive="tar")
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.timeout(300)
def test_killed_shards_end_as_undisturbed_ones(tmp_path, whole, random):
    """Twelve kills over three shards."""
    out, kills = tmp_path / "out", 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fake_generation"])
    for shard in itertools.cycle((1, 2, 3)):
        process = context.Process(target=fake_generation.draw_archive, args=(out, (shard, 3), 0.02))
        process.start()
        if kills < 12:
            time.sleep(float(random.uniform(0, 0.25)))
            kills += process.exitcode is None
            process.kill()
        process.join(60)
        if kills == 12 and all((out / f"shard-000{k}-of-0003.json").exists() for k in (1, 2, 3)):
            break
    for shard in (1, 2, 3):  # what a kill left after the last word
        draw(out, shard=(shard, 3), archive="tar")
        draw(tmp_path / "undisturbed", shard=(shard, 3), archive="tar")
    assert finalize(out) == finalize(tmp_path / "undisturbed") == 10
    assert {n: b for n, b in content(out).items() if "lock" not in n} == content(tmp_path / "undisturbed")
    assert content(unpacked(out, tmp_path / "a")) == content(unpacked(whole, tmp_path / "b"))


def test_one_brain_again(whole, tmp_path):
    fake_generation.use_fake_sampler()
    assert draw_again(fake_model(), whole, "sub-0004") == regenerate.Again(same=True, units=0)


def test_it_is_read_where_it_lies(tmp_path, monkeypatch):
    import grain.python as grain

    model = fake_model(training_grid(4))
    rows = draw_conditions(Covariates(), 3, 3, {})
    monkeypatch.setattr(dataset, "make_sampler", fake_sampler(shape=model.spec.grid.shape))
    for name, kind in (("loose", None), ("tar", "tar")):
        generate(model, tmp_path / name, rows, Settings(Sampling(2), batch_size=2, archive=kind))
    loose, packed = (stream.generated_source(tmp_path / name, model) for name in ("loose", "tar"))
    assert len(packed) == 3 and [scan.name for scan in packed.scans] == [scan.name for scan in loose.scans]
    one, two = (next(iter(grain.MapDataset.source(source).batch(3))) for source in (loose, packed))
    assert all(np.array_equal(one[name], two[name]) for name in ("image", "condition", "index"))
    tar = tmp_path / "tar/brains-0000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"brains-0000.tar: ends before sub-0001|gzip stream"):
        stream.generated_source(tmp_path / "tar", model)[0]


def test_ids_of_any_length_and_sessions(tmp_path):
    fake_generation.use_fake_sampler()
    row = {"sex": "F", "age": 60.0, "ventricles_ml": 30.0, "brain_ml": 1500.0}
    rows = [{**row, "age": age} for _ in range(2) for age in (60.0, 65.0)]
    ids = ["sub-" + "a" * 64, "sub-" + "a" * 63 + "b"]
    settings = Settings(Sampling(2), batch_size=2, repeat=2, sessions=True, archive="tar")
    generate(fake_model(), tmp_path / "out", rows, settings, ids=ids)
    assert verify(tmp_path / "out", full=True) == (4, {})
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    unpacked(tmp_path / "out", tmp_path / "out")
    assert bids_errors(tmp_path / "out") == []
    generate(
        fake_model(), tmp_path / "loose", rows, Settings(Sampling(2), batch_size=2, repeat=2, sessions=True), ids=ids
    )
    loose = {n: b for n, b in content(tmp_path / "loose").items() if n.startswith("sub-")}
    assert {n: b for n, b in content(tmp_path / "out").items() if n in loose} == loose
    (tmp_path / "out/brains-0000.tar").write_bytes(b"")
    generate(fake_model(), tmp_path / "out", rows, settings, ids=ids)
    assert verify(tmp_path / "out", full=True) == (4, {})


def test_mistakes_are_said_before_any_work(tmp_path, capsys):
    command = ["generate", str(tmp_path / "model"), str(tmp_path / "out"), "--archive", "tar", "--labels"]
    assert main(command) == 2 and "exclude each other" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="archive is 'zip'"):
        Settings(archive="zip")
