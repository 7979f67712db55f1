"""Preparing a dataset: one bad scan never ends a run, and no interruption leaves a trace in the bytes."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from brainldm import cli
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.covariates import Covariates
from brainldm.datasets.scans import ScanError
from brainldm.population.population import population_of
from brainldm.preparation import run as running
from brainldm.preparation.run import prepare
from brainldm.preparation.scan import PrepareOptions, prepare_scan, resample
from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.lock import LOCK, locked
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import Volume, block_average, read_volume
from brainldm.volumes.plausibility import looks_like_labels

GRID = training_grid(4)
FAST = PrepareOptions(grid="paper-4mm", registered=True)
COUNT = 6


def save(path, data, affine=GRID.affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(data), affine), path)


@pytest.fixture(scope="session")
def brains():
    """Made brains of 4 mm, in MNI152 space."""
    population = population_of(4)
    return [(population.make(2, i).image * 800).astype(np.int16) for i in range(COUNT)]


@pytest.fixture(scope="session")
def source(tmp_path_factory, brains):
    """A BIDS dataset of good scans with a table."""
    root = tmp_path_factory.mktemp("source") / "raw"
    rows = ["participant_id\tsex\tage\tventricles_ml\tbrain_ml\tsite"]
    for i, brain in enumerate(brains):
        save(root / f"sub-{i}/anat/sub-{i}_T1w.nii.gz", brain)
        rows.append(f"sub-{i}\t{'FM'[i % 2]}\t{60 + i}\t30\t1400\tA")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture(scope="session")
def undisturbed(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(source, out, FAST)
    return out


def content(root):
    """Every file of a folder with the hash of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def command(source, out, *more):
    return [sys.executable, "-m", "brainldm", "prepare", str(source), str(out), *more]


def test_the_output_is_a_dataset_that_training_reads(source, undisturbed, brains):
    records = read_dataset(undisturbed, Covariates())
    assert [record.name for record in records] == [f"sub-{i}" for i in range(COUNT)]
    assert records[1].covariates == {"sex": "M", "age": 61.0, "ventricles_ml": 30.0, "brain_ml": 1400.0}
    assert "site" in (undisturbed / "participants.tsv").read_text().splitlines()[0].split("\t")
    volume = read_volume(records[0].path)
    assert volume.data.shape == GRID.shape and volume.data.min() == 0 and abs(volume.data.max() - 1) < 1e-3
    sidecar = json.loads(records[0].path.with_suffix(".json").read_text())
    image = source / "sub-0/anat/sub-0_T1w.nii.gz"
    assert sidecar["Sources"] == ["sub-0/anat/sub-0_T1w.nii.gz"]
    assert sidecar["SourceSHA256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert sidecar["SHA256"] == hashlib.sha256(records[0].path.read_bytes()).hexdigest()
    assert sidecar["SkullStripped"] and sidecar["Software"]["brainldm"]
    low, high = (sidecar["IntensityScaling"][name] for name in ("Low", "High"))
    expected = np.clip((brains[0] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(volume.data, expected, atol=1e-4)  # on the grid already: no voxel is interpolated
    page = (undisturbed / "qc.html").read_text()
    assert "sub-5" in page or "data:image/png" in page
    assert str(source) not in page


def test_a_second_run_does_nothing_and_shards_equal_one_run(source, undisturbed, tmp_path):
    before = content(undisturbed)
    assert prepare(source, undisturbed, FAST).done_now == 0
    assert content(undisturbed) == before
    out = tmp_path / "shards"
    first = prepare(source, out, FAST, shard=(1, 2))
    assert first.done_now == 3 and not first.complete and not (out / "participants.tsv").exists()
    assert prepare(source, out, FAST, shard=(2, 2), workers=2).complete
    assert content(out) == before


def test_a_second_run_in_the_same_folder_is_refused_unless_it_is_another_shard(source, undisturbed, tmp_path):
    out = tmp_path / "out"
    with locked(out), pytest.raises(UserError, match="another run is at work in it"):
        prepare(source, out, FAST)
    with locked(out, f"{LOCK}-1-of-2"):
        with pytest.raises(UserError, match="another run is at work in it"):
            prepare(source, out, FAST, shard=(1, 2))
        assert prepare(source, out, FAST, shard=(2, 2)).done_now == 3
    (out / LOCK).touch()  # of a run that was killed
    assert prepare(source, out, FAST).done_now == 3
    (out / f"{LOCK}-1-of-2").unlink()
    assert content(out) == content(undisturbed)


def test_killed_at_five_random_points_the_bytes_are_the_same(source, undisturbed, tmp_path):
    out, rng = tmp_path / "killed", np.random.default_rng(0)
    flags = ("--grid", "paper-4mm", "--registered", "--workers", "2")
    done = 0
    for _ in range(5):
        process = subprocess.Popen(command(source, out, *flags), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        # wait for a little progress, so that not every kill falls into the imports
        wanted = min(done + int(rng.integers(0, 3)), COUNT)
        while process.poll() is None and len(list(out.glob("sub-*/anat/*.json"))) < wanted:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = len(list(out.glob("sub-*/anat/*.json")))
    subprocess.run(command(source, out, *flags), check=True, capture_output=True, timeout=300)
    assert content(out) == content(undisturbed)


def test_what_a_kill_leaves_half_written_is_removed(source, undisturbed, tmp_path):
    out = tmp_path / "out"
    prepare(source, out, FAST, shard=(1, 2))
    anat = out / "sub-0" / "anat"
    image = anat / "sub-0_space-MNI152NLin2009aSym_T1w.nii"
    image.with_suffix(".json").unlink()
    image.write_bytes(b"half")
    (anat / ".sub-0.nii.abc.tmp").write_bytes(b"half")
    (out / ".participants.tsv.abc.tmp").write_bytes(b"half")
    assert prepare(source, out, FAST).done_now == 1 + COUNT // 2
    assert content(out) == content(undisturbed)


def test_a_stop_is_seen_after_the_scan_under_way(source, undisturbed, tmp_path):
    out = tmp_path / "out"

    def stop(done, total, excluded):
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        prepare(source, out, FAST, progress=stop)
    assert 2 <= len(list(out.glob("sub-*/anat/*.json"))) < COUNT
    prepare(source, out, FAST)
    assert content(out) == content(undisturbed)


def test_other_options_are_refused_and_changed_scans_done_again(brains, tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    for i in range(2):
        save(root / f"{i}.nii.gz", brains[i])
    prepare(root, out, FAST)
    with pytest.raises(UserError, match="grid 'paper-4mm', now 'paper-2mm'"):
        prepare(root, out, PrepareOptions(grid="paper-2mm", registered=True))
    with pytest.raises(UserError, match="holds the source|is, or holds"):
        prepare(root, tmp_path, FAST)
    before = content(out)
    (root / "1.nii.gz").touch()  # newer, but the same bytes
    assert prepare(root, out, FAST).done_now == 0
    save(root / "1.nii.gz", brains[2])
    assert prepare(root, out, FAST).done_now == 1
    after = content(out)
    assert {name for name in after if after[name] != before[name]} >= {
        f"sub-1/anat/sub-1_space-MNI152NLin2009aSym_T1w{suffix}" for suffix in (".nii", ".json")
    }
    image = out / "sub-0/anat/sub-0_space-MNI152NLin2009aSym_T1w.nii"
    damaged = bytearray(image.read_bytes())
    damaged[-1] ^= 1
    image.write_bytes(damaged)
    assert prepare(root, out, FAST).done_now == 0
    assert prepare(root, out, FAST, verify=True).done_now == 1
    assert content(out) == after


def test_broken_scans_are_listed_and_the_run_goes_on(brains, tmp_path):
    root, out = tmp_path / "raw", tmp_path / "out"
    for i in range(2):
        save(root / f"good{i}.nii.gz", brains[i])
    save(root / "labels.nii.gz", (brains[0] // 300 * 7).astype(np.uint8))
    save(root / "upsidedown.nii.gz", brains[0][:, :, ::-1])
    save(root / "slab.nii.gz", brains[0][:, :, :12])
    save(root / "half.nii.gz", np.where(np.arange(40) < 18, brains[0], 0))
    noise = np.random.default_rng(0).integers(1, 1000, GRID.shape).astype(np.int16)
    save(root / "noise.nii.gz", noise)
    (root / "cut.nii.gz").write_bytes((root / "good0.nii.gz").read_bytes()[:-2000])
    (root / "text.nii").write_text("not an image")
    bad = {"labels", "upsidedown", "slab", "half", "noise", "cut", "text"}
    with pytest.raises(UserError, match="7 of 9 scans are excluded"):
        prepare(root, out, FAST)
    rows = [line.split("\t") for line in (out / "excluded.tsv").read_text().splitlines()]
    assert rows[0] == ["participant_id", "session_id", "source", "stage", "reason"]
    assert {row[0] for row in rows[1:]} == {f"sub-{name}" for name in bad}
    assert {row[0]: row[3] for row in rows}["sub-upsidedown"] == "quality"
    assert len(list(out.glob("sub-good*/anat/*.json"))) == 2  # nothing lost
    summary = prepare(root, out, FAST, max_excluded=0.8, workers=2)
    assert (summary.done_now, summary.prepared, summary.excluded, summary.complete) == (0, 2, 7, True)
    assert prepare(root, out, FAST, max_excluded=0.8, retry=True).done_now == 7
    assert (out / "excluded" / "sub-upsidedown.nii").exists()  # to look at, on the page
    assert "Quarantined" in (out / "qc.html").read_text()
    assert sorted(p.name for p in out.glob("sub-*")) == ["sub-good0", "sub-good1"]


def test_registration_end_to_end(brains, tmp_path, capsys):
    pytest.importorskip("SimpleITK", reason="registration needs the extra brainldm[prepare]")
    root, out = tmp_path / "raw", tmp_path / "out"
    turn = np.array([[0.9848, -0.1736, 0, 12], [0.1736, 0.9848, 0, -8], [0, 0, 1, 30], [0, 0, 0, 1]])
    save(root / "a.nii.gz", brains[0], turn @ GRID.affine)
    save(root / "b.nii.gz", brains[0])
    arguments = ["prepare", str(root), str(out), "--grid", "paper-4mm", "--json", "--workers"]
    assert cli.main([*arguments, "1"]) == 0
    assert json.loads(capsys.readouterr().out)["prepared"] == 2
    images = [read_volume(out / f"sub-{n}/anat/sub-{n}_space-MNI152NLin2009aSym_T1w.nii").data for n in "ab"]
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.995  # one brain, in two places before
    sidecar = json.loads((out / "sub-a/anat/sub-a_space-MNI152NLin2009aSym_T1w.json").read_text())
    assert 8 < sidecar["Registration"]["RotationDegrees"] < 13
    again = tmp_path / "again"
    arguments[2] = str(again)
    assert cli.main([*arguments, "2"]) == 0
    assert content(again) == content(out)


def test_masks_and_strippers(brains, tmp_path):
    root, masks = tmp_path / "raw", tmp_path / "masks"
    brain = brains[0]
    head = np.where(brain > 0, brain, 3000).astype(np.int16)
    save(root / "x.nii.gz", head)
    save(masks / "x_mask.nii.gz", (brain > 0).astype(np.uint8))
    prepare(root, tmp_path / "out", PrepareOptions(grid="paper-4mm", registered=True, masks=str(masks)))
    image = read_volume(tmp_path / "out/sub-x/anat/sub-x_space-MNI152NLin2009aSym_T1w.nii").data
    assert np.array_equal(image > 0, brain > 0)
    tool = tmp_path / "a tool.py"
    tool.write_text(
        "import sys, nibabel, numpy\nimage = nibabel.load(sys.argv[1])\ndata = numpy.asarray(image.dataobj)\n"
        "nibabel.save(nibabel.Nifti1Image((data != 3000).astype('uint8'), image.affine), sys.argv[2])\n"
    )
    stripper = f"{shlex.quote(sys.executable)} {shlex.quote(str(tool))} {{input}} {{mask}}"
    stripped = prepare_scan(
        root / "x.nii.gz", PrepareOptions(grid="paper-4mm", registered=True, strip_command=stripper)
    )
    np.testing.assert_allclose(stripped.image, image, atol=1e-4)
    assert stripped.sidecar["StrippedBy"] == "command" and stripped.sidecar["SkullStripped"]
    with pytest.raises(ScanError, match="exit code 1"):
        prepare_scan(
            root / "x.nii.gz",
            PrepareOptions(grid="paper-4mm", registered=True, strip_command=stripper.replace("{mask}", "/no/{mask}")),
        )
    save(masks / "x_mask.nii.gz", np.pad(np.ones((3, 3, 3), np.uint8), [(0, 37), (0, 53), (0, 37)]))
    with pytest.raises(ScanError, match="which is no brain"):
        prepare_scan(root / "x.nii.gz", FAST, masks / "x_mask.nii.gz")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"grid": "5mm"}, "--grid"),
        ({"skull": "no"}, "--skull"),
        ({"masks": "m", "strip_command": "x {input} {mask}"}, "exclude each other"),
        ({"strip_command": "tool {output}"}, "must name {input}"),
        ({"strip_command": "tool {input} {mask} {this}"}, "unknown"),
        ({"strip_command": "tool '{input} {mask}"}, "split into words"),
    ],
)
def test_impossible_options_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        PrepareOptions(**arguments)


def test_impossible_runs_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="shards are 1/2 to 2/2"):
        prepare(source, tmp_path / "out", FAST, shard=(3, 2))
    with pytest.raises(UserError, match="no command here"):
        prepare(
            source, tmp_path / "out", PrepareOptions(registered=True, strip_command="no-such-tool-9 {input} {mask}")
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no T1w scans"):
        prepare(tmp_path / "empty", tmp_path / "out", FAST)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        prepare(source, tmp_path / "other", FAST)


def test_a_surprise_in_one_scan_is_recorded(source, tmp_path, monkeypatch):
    def surprised(path, options, mask=None):
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(running, "prepare_scan", surprised)
    with pytest.raises(UserError, match="6 of 6"):
        prepare(source, tmp_path / "out", FAST)
    assert "ZeroDivisionError: odd" in (tmp_path / "out" / "excluded.tsv").read_text()


def test_resampling_smooths_before_it_shrinks(source):
    fine, coarse = training_grid(1), training_grid(4)
    stripes = np.zeros(fine.shape, np.float32)
    stripes[::2] = 1  # finer than any coarse voxel can show
    shown = resample(Volume(stripes, fine.affine), np.eye(4), coarse)
    assert abs(shown[5:-5].mean() - 0.5) < 0.01 and shown[5:-5].std() < 0.01
    smooth = np.random.default_rng(0).random((10, 14, 10), np.float32).repeat(16, 0).repeat(16, 1).repeat(16, 2)
    shown = resample(Volume(smooth, fine.affine), np.eye(4), coarse)
    assert np.corrcoef(shown.ravel(), block_average(smooth, 4).ravel())[0, 1] > 0.97
    outside = np.eye(4)
    outside[0, 3] = 80
    assert (resample(Volume(smooth + 1, fine.affine), outside, coarse)[:20] == 0).all()
    same = resample(Volume(smooth, fine.affine), np.eye(4), fine)
    assert np.array_equal(same, smooth)


def test_label_maps_are_not_images_and_eight_bit_scans_are(brains):
    labels = (brains[0] // 200).astype(np.float32)
    assert looks_like_labels(labels)
    assert looks_like_labels((brains[0] > 0).astype(np.float32))
    assert not looks_like_labels((brains[0] // 4).astype(np.float32))
    assert not looks_like_labels(brains[0].astype(np.float32))


def test_real_labels_and_scans_are_told_apart(shared):
    native = shared / "data" / "native"
    assert looks_like_labels(read_volume(native / "1003_glm.nii.gz").data)
    assert not looks_like_labels(read_volume(native / "1003_SS.nii.gz").data)
    assert not looks_like_labels(read_volume(native / "t1_crop_wholehead_brainchop.nii.gz").data)


def test_bias_is_corrected(brains):
    pytest.importorskip("SimpleITK", reason="N4 needs the extra brainldm[prepare]")
    from brainldm.preparation.scan import correct_bias

    brain = brains[0].astype(np.float32)
    ramp = np.linspace(0.7, 1.3, brain.shape[1], dtype=np.float32)[None, :, None]

    def tilt(data):
        inside = brain > 500
        place = np.broadcast_to(np.arange(brain.shape[1])[None, :, None], brain.shape)[inside]
        return abs(np.corrcoef(place, data[inside])[0, 1])

    corrected = correct_bias(Volume(brain * ramp, GRID.affine)).data
    assert tilt(corrected) < 0.5 * tilt(brain * ramp)
    assert np.array_equal(corrected, correct_bias(Volume(brain * ramp, GRID.affine)).data)
