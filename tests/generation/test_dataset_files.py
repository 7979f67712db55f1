"""Generated datasets as files: gone on with, split, looked at, finished, drawn again."""

import errno
import json
import multiprocessing
import re
import time
from pathlib import Path

import fake_generation
import numpy as np
import pytest
from fake_generation import SHA256, draw, fake_model, fake_sampler

from brainldm.cli import main
from brainldm.generation import dataset, regenerate
from brainldm.generation import finalize as finishing
from brainldm.generation.dataset_page import PAGE, distances, write_dataset_page
from brainldm.generation.finalize import finalize
from brainldm.generation.job import read_job
from brainldm.generation.manifest import read_manifests
from brainldm.generation.regenerate import regenerate as draw_again
from brainldm.generation.status import read_status, verify
from brainldm.runtime.errors import BrainldmError, Stopped, UserError
from brainldm.volumes.nifti import read_volume


def small_page(out, *rest):
    """In place of the page to look at, which takes longer to draw than all else."""
    (out / PAGE).write_text("a page")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """The real sampler and page come back after each test."""
    monkeypatch.setattr(finishing, "write_dataset_page", small_page)
    for module in (dataset, regenerate):
        monkeypatch.setattr(module, "make_sampler", module.make_sampler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Ten brains of one undisturbed run. Tests read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "write_dataset_page", small_page)
        for module in (dataset, regenerate):
            patch.setattr(module, "make_sampler", module.make_sampler)
        out = tmp_path_factory.mktemp("whole") / "out"
        draw(out)
    return out


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def images(out: Path) -> dict[str, bytes]:
    return {name: found for name, found in content(out).items() if name.endswith(".nii.gz")}


def image(out: Path, number: int) -> Path:
    return next((out / f"sub-{number:04d}/anat").glob("*_T1w.nii.gz"))


def test_every_file_is_in_the_sums_and_marked(whole):
    sums = (whole / "SHA256SUMS").read_text()
    known = {line.partition("  ")[2] for line in sums.splitlines()}
    ours = {"SHA256SUMS", ".bidsignore", "manifest-0000.jsonl", "shard-0001-of-0001.json"}
    assert set(content(whole)) - known == ours
    sidecar = json.loads((whole / "T1w.json").read_text())
    assert sidecar["Synthetic"] is True and sidecar["SkullStripped"] is True and sidecar["Steps"] == 2
    entries = list(read_manifests(whole))
    assert [entry["index"] for entry in entries] == list(range(10))
    assert all(entry["file"] in known and 0 < entry["mean"] < entry["p99"] <= 1 for entry in entries)


def test_the_same_command_on_a_finished_dataset_draws_nothing(whole, monkeypatch):
    before = content(whole)
    monkeypatch.setattr(fake_generation, "use_fake_sampler", lambda **options: None)
    monkeypatch.setattr(dataset, "make_sampler", None)
    draw(whole)
    assert content(whole) == before


def test_what_is_missing_or_damaged_is_drawn_again(whole, tmp_path):
    draw(tmp_path / "out")
    image(tmp_path / "out", 2).unlink()
    image(tmp_path / "out", 4).write_bytes(b"short")
    changed = bytearray(image(tmp_path / "out", 7).read_bytes())
    changed[20] ^= 1
    image(tmp_path / "out", 7).write_bytes(changed)
    recorded, wrong = verify(tmp_path / "out", full=True)
    names = {"sub-0002": "missing", "sub-0004": "of another length", "sub-0007": "changed"}
    assert recorded == 10 and wrong == names
    assert read_status(tmp_path / "out").bad == 2
    draw(tmp_path / "out")
    assert verify(tmp_path / "out", full=True)[1] == {"sub-0007": "changed"}
    draw(tmp_path / "out", verify=True)
    assert content(tmp_path / "out") == content(whole)


def test_the_line_that_a_killed_run_was_writing_is_drawn_again(whole, tmp_path):
    draw(tmp_path / "out")
    manifest = tmp_path / "out/manifest-0000.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-30])
    leftover = image(tmp_path / "out", 10).with_name(".sub-0010_x.nii.gz.abc.tmp")
    leftover.write_bytes(b"half")
    draw(tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


def test_shards_make_the_dataset_that_one_run_makes(whole, tmp_path):
    out = tmp_path / "out"
    for number in (2, 3):
        draw(out, shard=(number, 3))
    assert (out / "shard-0002-of-0003.json").exists() and not (out / "participants.tsv").exists()
    status = read_status(out)
    assert (status.done, status.missing, status.shards_done, status.finished) == (6, 4, 2, False)
    with pytest.raises(BrainldmError, match=r"1 of 3 shards are not done \(1\)"):
        finalize(out)
    draw(out, shard=(1, 3))
    assert finalize(out) == 10 and read_status(out).finished
    assert images(out) == images(whole)
    assert (out / "participants.tsv").read_bytes() == (whole / "participants.tsv").read_bytes()
    entries = list(read_manifests(out))
    assert len({entry["id"] for entry in entries}) == len(entries) == 10


def test_chunks_are_dealt_to_the_shards_in_turn(tmp_path):
    draw(tmp_path / "out", count=10, shard=(2, 2), chunk_size=3)
    assert [entry["index"] for entry in read_manifests(tmp_path / "out")] == [3, 4, 5, 9]


def test_brains_of_a_sweep_share_their_noise(tmp_path):
    draw(tmp_path / "out", repeat=5)
    entries = list(read_manifests(tmp_path / "out"))
    assert [entry["noise"] for entry in entries] == [0] * 5 + [1] * 5
    volumes = [read_volume(tmp_path / "out" / entry["file"]).data for entry in entries]
    # the stand-in multiplies the noise by a number for the conditions
    assert np.corrcoef(volumes[0].ravel(), volumes[4].ravel())[0, 1] > 0.999
    assert abs(np.corrcoef(volumes[0].ravel(), volumes[5].ravel())[0, 1]) < 0.3
    assert draw_again(fake_model(), tmp_path / "out", "sub-0007").same


def test_a_dataset_that_is_not_as_recorded_is_not_finished(tmp_path):
    out = tmp_path / "out"
    draw(out)
    lines = (out / "manifest-0000.jsonl").read_text().splitlines()
    image(out, 3).write_bytes(image(out, 4).read_bytes())
    with pytest.raises(
        BrainldmError, match="1 of 10 brains are not as they should be: sub-0003 is (changed|of another)"
    ):
        finalize(out)
    (out / "manifest-0001.jsonl").write_text(lines[5] + "\n")
    with pytest.raises(BrainldmError, match="sub-0006 is recorded 2 times"):
        finalize(out)
    assert main(["finalize", str(out)]) == 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"count": 11}, "number of brains 10, now 11.*conditions"),
        ({"shard": (1, 2)}, "shards 1, now 2"),
        ({"chunk_size": 5}, "chunk size 2, now 5"),
    ],
)
def test_another_dataset_in_the_same_folder_is_refused(whole, change, said):
    before = content(whole)
    with pytest.raises(UserError, match=said):
        draw(whole, **change)
    assert content(whole) == before


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        draw(tmp_path)
    for command in ("status", "verify", "finalize"):
        assert main([command, str(tmp_path)]) == 2
    assert content(tmp_path) == {"mine": b"mine"}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"sampling": 3},
        {"sampling": {"speed": 1}},
        {"count": "ten"},
        {"shards": 10**12},
        {"chunk_size": 0},
        {"ids": ["../out"]},
        {"ids": ["sub-1"]},
        {"about": {}},
        {"kind": "magic"},
        {"begin": "now"},
    ],
    ids=str,
)
def test_a_job_that_was_changed_is_refused(whole, tmp_path, change):
    content = json.loads((whole / "generation.json").read_text()) | change
    (tmp_path / "generation.json").write_text(json.dumps(content))
    for command in ("status", "verify", "finalize"):
        assert main([command, str(tmp_path)]) == 2
    with pytest.raises(UserError, match="generation.json.*was damaged|sampling cannot be understood"):
        read_status(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"index": "x"}, {"index": -1}, {"file": "../sub-1.nii.gz"}, {"bytes": None}, {"mean": "0.5"}, {"id": 3}],
    ids=str,
)
def test_a_line_that_was_changed_counts_as_none(tmp_path, change):
    draw(tmp_path / "out")
    manifest = tmp_path / "out/manifest-0000.jsonl"
    lines = manifest.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    manifest.write_text("\n".join(lines) + "\n")
    assert read_status(tmp_path / "out").missing == 1
    draw(tmp_path / "out")
    assert read_status(tmp_path / "out").finished


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1, "sampling": 3}', "nothing"])
def test_a_job_that_cannot_be_understood(tmp_path, text):
    (tmp_path / "generation.json").write_text(text)
    with pytest.raises(UserError, match="generation.json: "):
        read_status(tmp_path)


def test_brains_that_are_no_images_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_generation, "fake_sampler", lambda **options: fake_sampler(bad=(4,)))
    with pytest.raises(BrainldmError, match="sub-0005: .* not finite, and 1 of 10 brains"):
        draw(tmp_path / "out")
    assert len(images(tmp_path / "out")) == 9 and read_status(tmp_path / "out").missing == 1
    monkeypatch.setattr(fake_generation, "fake_sampler", fake_sampler)
    draw(tmp_path / "out")
    assert read_status(tmp_path / "out").finished


def test_a_full_disk_ends_as_a_stop_and_the_run_goes_on(whole, tmp_path, monkeypatch):
    written = []

    def write(out, job, index, *rest):
        written.append(index)
        if index == 5 and len(written) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(out, job, index, *rest)

    real = dataset.write_subject
    monkeypatch.setattr(dataset, "write_subject", write)
    with pytest.raises(Stopped, match="No space left .* Make room"):
        draw(tmp_path / "out")
    draw(tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


def test_too_little_room_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_SMALLEST_SHARE", 1e30)
    with pytest.raises(UserError, match="are free, and 10 brains take"):
        draw(tmp_path / "out")


@pytest.mark.timeout(300)
def test_killed_shards_end_as_undisturbed_ones(whole, tmp_path, random):
    """Twenty kills over three shards, two of them at work at a time."""
    out = tmp_path / "out"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fake_generation"])
    left, kills = [1, 2, 3], 0
    while left:
        running = {}
        for shard in left[:2]:
            running[shard] = context.Process(target=fake_generation.draw_or_stop, args=(out, 10, (shard, 3), 0.02))
            running[shard].start()
        for shard, process in running.items():
            if kills < 20:
                time.sleep(float(random.uniform(0, 0.25)))
                kills += process.exitcode is None
                process.kill()
            process.join(60)
            if process.exitcode == 0:
                left.remove(shard)
        random.shuffle(left)
    assert kills == 20 or not left
    finalize(out)
    assert images(out) == images(whole) and not list(out.rglob("*.tmp"))
    undisturbed = tmp_path / "undisturbed"
    for shard in (1, 2, 3):
        draw(undisturbed, shard=(shard, 3))
    finalize(undisturbed)
    assert {n: b for n, b in content(out).items() if "lock" not in n} == content(undisturbed)


def test_a_stop_keeps_what_is_written(whole, tmp_path):
    out = tmp_path / "out"
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=fake_generation.draw_or_stop, args=(out, 10, (1, 1), 0.3))
    process.start()
    end = time.monotonic() + 60
    while not images(out) and time.monotonic() < end:
        time.sleep(0.02)
    process.terminate()
    process.join(60)
    assert process.exitcode == 1  # multiprocessing's code for an exception; the command line makes 75 of Stopped
    assert 0 < read_status(out).done < 10
    draw(out)
    assert content(out) == content(whole)


def test_two_runs_of_one_shard_exclude_each_other(tmp_path):
    from brainldm.runtime.lock import locked

    with locked(tmp_path / "out"), pytest.raises(UserError, match="another run is at work"):
        draw(tmp_path / "out")
    with locked(tmp_path / "out", "brainldm.lock-1-of-2"):
        draw(tmp_path / "out", shard=(2, 2))


def test_one_brain_again(whole, tmp_path):
    fake_generation.use_fake_sampler()
    again = draw_again(fake_model(), whole, "sub-0004", tmp_path / "again.nii.gz")
    assert again.same and again.units == 0
    assert (tmp_path / "again.nii.gz").read_bytes() == image(whole, 4).read_bytes()
    with pytest.raises(UserError, match="exists"):
        draw_again(fake_model(), whole, "sub-0004", tmp_path / "again.nii.gz")
    with pytest.raises(UserError, match="no manifest of it has sub-0011"):
        draw_again(fake_model(), whole, "sub-0011")
    other = fake_model()
    other.sha256 = SHA256[::-1]
    with pytest.raises(UserError, match="was drawn by the model abab"):
        draw_again(other, whole, "sub-0004")


def test_one_brain_again_that_is_not_the_same(tmp_path):
    draw(tmp_path / "out")
    manifest = tmp_path / "out/manifest-0000.jsonl"
    lines = manifest.read_text().splitlines()
    lines[3] = re.sub(r'"sha256": "\w+"', '"sha256": "00"', lines[3])
    manifest.write_text("\n".join(lines) + "\n")
    assert draw_again(fake_model(), tmp_path / "out", "sub-0004") == regenerate.Again(same=False, units=0)
    image(tmp_path / "out", 4).write_bytes(image(tmp_path / "out", 5).read_bytes())
    assert draw_again(fake_model(), tmp_path / "out", "sub-0004").units > 1000
    image(tmp_path / "out", 4).unlink()
    assert draw_again(fake_model(), tmp_path / "out", "sub-0004").units is None


def test_the_page_shows_what_is_unlike_the_others(whole, tmp_path):
    out = tmp_path / "out"
    draw(out, 16)
    chance = np.random.default_rng(0).normal(0.5, 0.01, (16, 2)).tolist()
    entries = [
        {**entry, "mean": mean, "p99": p99} for entry, (mean, p99) in zip(read_manifests(out), chance, strict=True)
    ]
    entries[4]["mean"], entries[9]["p99"] = 0.9, 0.1
    assert {k for k, distance in enumerate(distances(entries)) if distance > 6} == {4, 9}
    write_dataset_page(out, read_job(out), entries, "DDIM, 2 steps")
    page = (out / PAGE).read_text()
    assert page.count("data:image/png;base64,") == 3 and "sub-0005" in page and "sub-0010" in page
    assert "ventricles_ml" in page and "DDIM, 2 steps" in page and "<script" not in page
    before = page
    write_dataset_page(out, read_job(out), entries, "DDIM, 2 steps")
    assert (out / PAGE).read_text() == before


def test_the_commands_say_how_far_it_is(whole, tmp_path, capsys):
    assert main(["status", str(whole)]) == 0
    assert "10 of 10 brains done, 0 missing, 0 bad" in capsys.readouterr().out
    assert main(["status", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True
    assert main(["verify", str(whole), "--full"]) == 0
    draw(tmp_path / "out")
    image(tmp_path / "out", 1).rename(image(tmp_path / "out", 1).with_name("sub-0001_other_T1w.nii.gz"))
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out"), "--json"]) == 1
    wrong = json.loads(capsys.readouterr().out)["wrong"]
    assert wrong == {"sub-0001": "missing", "sub-0001/anat/sub-0001_other_T1w.nii.gz": "in no manifest"}
