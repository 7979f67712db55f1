"""A dataset measured from end to end: tables, label maps, what is kept, what is measured again, what is refused."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest

from brainldm.datasets.bids import read_dataset, write_dataset_files
from brainldm.datasets.covariates import Covariates
from brainldm.evaluation.measures.backend import Backend, Measured
from brainldm.evaluation.measures.run import default_folder, label_dataset, measure_dataset
from brainldm.evaluation.measures.weight_free import WeightFree
from brainldm.population.population import write_population
from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.lock import locked
from brainldm.volumes.nifti import read_volume, write_volume


class Counting(Backend):
    """The mean of an image as its volume; which images it saw, and what it was told of them."""

    structures = {1: "bright"}
    columns = {"ventricles_ml": "the mean", "brain_ml": "normalised mean"}

    def __init__(self, name="counting-1", sha256=None, needs_stripped=False, at_each=None):
        self.name, self.sha256, self.needs_stripped, self._at_each = name, sha256, needs_stripped, at_each
        self.seen = []

    def __call__(self, image, labels=False):
        self.seen.append(image)
        if self._at_each:
            self._at_each()
        mean = 100 * float(image.data.mean())
        brain = mean / image.scale if image.scale else float("nan")
        return Measured(
            {"ventricles_ml": mean, "brain_ml": brain}, (image.data > 0.5).astype(np.int16) if labels else None
        )


IDS = ("sub-1", "sub-2", "sub-3")
SESSIONS = {"sub-2": "ses-b"}


def image_of(root, who):
    session = SESSIONS.get(who)
    stem = f"{who}_{session}" if session else who
    return root / who / (session or "") / "anat" / f"{stem}_space-MNI152NLin2009aSym_T1w.nii.gz"


@pytest.fixture
def data(tmp_path):
    """Three random images of people, one with a session, one with the scale of its registration."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for who in IDS:
        write_volume(image_of(root, who), rng.random((8, 10, 6)), np.diag([2.0, 2, 2, 1]))
    sidecar = image_of(root, "sub-1")
    sidecar.with_name(sidecar.name.replace(".nii.gz", ".json")).write_text('{"Registration": {"Scale": 0.9}}')
    values = (
        ("sub-1", "n/a", 44, "n/a", "n/a"),
        ("sub-2", "ses-b", 60, "33.5", "n/a"),
        ("sub-3", "n/a", 61, "n/a", "n/a"),
    )
    columns = ("participant_id", "session_id", "age", "ventricles_ml", "brain_ml")
    write_dataset_files(
        root,
        name="people",
        rows=[dict(zip(columns, row, strict=True)) for row in values],
        columns={name: {"Description": name} for name in columns[1:]} | {"ventricles_ml": {"Units": "mL"}},
        generated_by={"Name": "test"},
        readme="",
    )
    return root


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_tables_and_label_maps(data, tmp_path):
    out, backend, steps = tmp_path / "out", Counting(), []
    summary = measure_dataset(data, out, backend, labels=True, progress=lambda *step: steps.append(step))
    assert (summary.total, summary.measured, summary.done_now, summary.excluded) == (3, 3, 3, 0)
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [image.people for image in backend.seen] == [True] * 3
    rows = rows_of(out / "volumes.tsv")
    assert [row["participant_id"] for row in rows] == list(IDS) and rows[1]["session_id"] == "ses-b"
    mean = float(read_volume(image_of(data, "sub-1")).data.mean())
    assert float(rows[0]["ventricles_ml"]) == pytest.approx(100 * mean, abs=1) and rows[0]["reason"] == "n/a"
    assert rows[0]["brain_ml"] != "n/a" and rows[1]["brain_ml"] == "n/a"
    assert json.loads((out / "volumes.json").read_text())["ventricles_ml"] == {"Description": "the mean", "Units": "mL"}
    name = "sub-2/ses-b/anat/sub-2_ses-b_space-MNI152NLin2009aSym_desc-counting1_dseg.nii.gz"
    labels = read_volume(out / name)
    assert np.array_equal(labels.data, backend.seen[1].data > 0.5)
    np.testing.assert_allclose(labels.affine, read_volume(image_of(data, "sub-2")).affine)
    assert (out / "desc-counting1_dseg.tsv").read_text() == "index\tname\n0\tbackground\n1\tbright\n"
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and "counting-1" in described["GeneratedBy"][0]["Description"]


def test_what_is_measured_stays(data, tmp_path):
    """And a changed image, another backend or other weights, and label maps that are missing, are measured."""
    out = tmp_path / "out"
    before = measure_dataset(data, out, Counting())
    table = (out / "volumes.tsv").read_bytes()
    again = Counting()
    assert measure_dataset(data, out, again).done_now == 0 and not again.seen
    assert (out / "volumes.tsv").read_bytes() == table and before.done_now == 3
    write_volume(image_of(data, "sub-3"), np.random.default_rng(5).random((8, 10, 6)), np.diag([2.0, 2, 2, 1]))
    assert measure_dataset(data, out, Counting()).done_now == 1
    assert (out / "volumes.tsv").read_bytes() != table
    assert measure_dataset(data, out, Counting(sha256="ab")).done_now == 3
    assert measure_dataset(data, out, Counting("other", "ab")).done_now == 3
    assert measure_dataset(data, out, Counting("other", "ab"), labels=True).done_now == 3
    next(out.glob("sub-3/anat/*_dseg.nii.gz")).unlink()
    assert measure_dataset(data, out, Counting("other", "ab"), labels=True).done_now == 1


def test_a_stopped_run_goes_on(data, tmp_path):
    out = tmp_path / "out"
    stopping = Counting(at_each=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="2 images to measure"):
        measure_dataset(data, out, stopping)
    assert not (out / "volumes.tsv").exists()
    with open(out / "measured.jsonl", "a") as log:
        log.write('{"name": "sub-2_ses-b", "volu')  # as a kill leaves it
    summary = measure_dataset(data, out, Counting())
    assert summary.done_now == 2 and len(rows_of(out / "volumes.tsv")) == 3
    assert len((out / "measured.jsonl").read_text().splitlines()) == 3


def test_shards_share_a_folder(data, tmp_path):
    """The last one writes the tables, which are those of one run; a run of all has nothing left to do."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    first = measure_dataset(data, out, Counting(), shard=(1, 2))
    assert (first.total, first.done_now, first.complete) == (3, 2, False) and not (out / "volumes.tsv").exists()
    with locked(out, "brainldm.lock-1-of-2"):  # another shard at work is no hindrance
        last = measure_dataset(data, out, Counting(), shard=(2, 2))
    assert (last.measured, last.done_now, last.complete) == (3, 1, True)
    measure_dataset(data, whole, Counting())
    assert (out / "volumes.tsv").read_bytes() == (whole / "volumes.tsv").read_bytes()
    assert measure_dataset(data, out, Counting()).done_now == 0
    with pytest.raises(UserError, match="1/2 to 2/2"):
        measure_dataset(data, out, Counting(), shard=(3, 2))


def test_missing_covariates_are_filled_in(data, tmp_path):
    measure_dataset(data, tmp_path / "plain", Counting())
    rows = rows_of(tmp_path / "plain" / "participants.tsv")
    assert [row["ventricles_ml"] for row in rows] == ["n/a", "33.5", "n/a"]
    measure_dataset(data, tmp_path / "filled", Counting(), fill=True)
    rows = rows_of(tmp_path / "filled" / "participants.tsv")
    volumes = rows_of(tmp_path / "filled" / "volumes.tsv")
    assert [row["age"] for row in rows] == ["44", "60", "61"]
    assert rows[1]["ventricles_ml"] == "33.5" and rows[0]["ventricles_ml"] == volumes[0]["ventricles_ml"] != "n/a"
    assert rows[0]["brain_ml"] == volumes[0]["brain_ml"] != "n/a" and rows[2]["brain_ml"] == "n/a"
    described = json.loads((tmp_path / "filled" / "participants.json").read_text())
    assert described["ventricles_ml"]["Units"] == "mL"
    wanted = Covariates(tuple(item for item in Covariates() if item.name in ("age", "ventricles_ml")))
    with pytest.raises(UserError, match="ventricles_ml is missing"):
        read_dataset(data, wanted)
    for name in ("participants.tsv", "participants.json"):
        shutil.copy(tmp_path / "filled" / name, data / name)
    found = [scan.covariates["ventricles_ml"] for scan in read_dataset(data, wanted)]
    assert found == [float(row["ventricles_ml"]) for row in rows]


def test_an_image_that_cannot_be_measured_has_its_reason(data, tmp_path):
    image_of(data, "sub-1").write_bytes(b"damaged")
    for who, stripped in (("sub-2", "true"), ("sub-3", "false")):
        image = image_of(data, who)
        image.with_name(image.name.replace(".nii.gz", ".json")).write_text(f'{{"SkullStripped": {stripped}}}')
    summary = measure_dataset(data, tmp_path / "out", Counting(needs_stripped=True), labels=True)
    assert (summary.total, summary.measured) == (3, 1)
    rows = rows_of(tmp_path / "out" / "volumes.tsv")
    assert "sub-1" in rows[0]["reason"] and rows[0]["ventricles_ml"] == "n/a"
    assert "whole head" in rows[2]["reason"] and not list((tmp_path / "out").glob("sub-3/anat/*_dseg.nii.gz"))
    image_of(data, "sub-2").write_bytes(b"damaged")
    with pytest.raises(UserError, match="none of its 3 images could be measured"):
        measure_dataset(data, tmp_path / "out", Counting(needs_stripped=True))


def test_an_image_is_looked_at_where_nothing_is_recorded(data, tmp_path):
    """A background of one value is that of a stripped brain; a label map is no image."""
    brain = np.zeros((12, 12, 12))
    brain[3:9, 3:9, 3:9] = np.random.default_rng(1).random((6, 6, 6))
    write_volume(image_of(data, "sub-2"), brain, np.diag([2.0, 2, 2, 1]))
    write_volume(image_of(data, "sub-3"), (brain > 0) * 3.0, np.diag([2.0, 2, 2, 1]), scale_max=32767)
    backend = Counting(needs_stripped=True)
    assert measure_dataset(data, tmp_path / "out", backend).measured == 1
    reasons = [row["reason"] for row in rows_of(tmp_path / "out" / "volumes.tsv")]
    assert "a whole head" in reasons[0] and reasons[1] == "n/a"
    assert len(backend.seen) == 1


def test_label_maps_beside_the_images(data):
    image_of(data, "sub-3").write_bytes(b"damaged")
    steps = []
    missing = label_dataset(data, Counting(), lambda *step: steps.append(step))
    assert list(missing) == ["sub-3"] and steps == [(1, 3), (2, 3), (3, 3)]
    beside = image_of(data, "sub-2").with_name("sub-2_ses-b_space-MNI152NLin2009aSym_desc-counting1_dseg.nii.gz")
    expected = read_volume(image_of(data, "sub-2")).data
    assert np.array_equal(read_volume(beside).data, (expected - expected.min()) / np.ptp(expected) > 0.5)
    assert (data / "desc-counting1_dseg.tsv").is_file() and not list(data.glob("measure*"))


def test_what_cannot_work_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="is the dataset itself"):
        measure_dataset(data, data, Counting())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something else"):
        measure_dataset(data, tmp_path / "other", Counting())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no T1w images"):
        measure_dataset(tmp_path / "empty", tmp_path / "out", Counting())
    out = tmp_path / "out"
    measure_dataset(data, out, Counting())
    with locked(out), pytest.raises(UserError, match="process"):
        measure_dataset(data, out, Counting())


def test_the_embedded_population_by_the_measure_without_weights(tmp_path):
    """In the folder of derivatives, where the dataset stays readable."""
    root = tmp_path / "people"
    write_population(root, 2, 4, seed=2)
    out = default_folder(root)
    measure_dataset(root, out, WeightFree(), labels=True)
    people = read_dataset(root, Covariates())
    assert len(people) == 2
    for person, row in zip(people, rows_of(out / "volumes.tsv"), strict=True):
        assert float(row["ventricles_ml"]) == pytest.approx(person.covariates["ventricles_ml"], abs=5)
        assert float(row["brain_ml"]) == pytest.approx(person.covariates["brain_ml"], abs=60)
        assert row["tissue_ml"] == "n/a"
