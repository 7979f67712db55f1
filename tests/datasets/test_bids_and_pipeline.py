"""Datasets on disk, and the batches made of them."""

import numpy as np
import pytest

from brainldm.data.pipeline import VolumeSource, batches, iterate, load_image
from brainldm.datasets import bids
from brainldm.datasets.bids import image_path, read_dataset
from brainldm.datasets.covariates import Covariates
from brainldm.datasets.scans import Scan
from brainldm.datasets.splits import split
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json, require_new_folder
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume

GRID = training_grid(4)
COVARIATES = Covariates()


def write_dataset(root, count=5, grid=GRID):
    rows = []
    for index in range(count):
        participant = f"sub-{index + 1:02d}"
        data = np.random.default_rng(index).random(grid.shape, dtype=np.float32)
        write_volume(image_path(root, participant), data, grid.affine)
        rows.append(
            {
                "participant_id": participant,
                "sex": "FM"[index % 2],
                "age": 50 + index,
                "ventricles_ml": 20 + index,
                "brain_ml": 1400 + index,
            }
        )
    bids.write_dataset_files(
        root,
        name="test",
        rows=rows,
        columns=COVARIATES.column_descriptions(),
        generated_by={"Name": "test"},
        readme="x",
    )
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "bids")


def edit_table(root, old, new):
    table = root / "participants.tsv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))


def test_reading_what_was_written(dataset):
    records = read_dataset(dataset, COVARIATES)
    assert [r.name for r in records] == [f"sub-{i:02d}" for i in range(1, 6)]
    assert records[1].covariates == {"sex": "M", "age": 51.0, "ventricles_ml": 21.0, "brain_ml": 1401.0}
    assert read_json(dataset / "dataset_description.json")["GeneratedBy"] == [{"Name": "test"}]
    assert read_json(dataset / "participants.json")["age"]["Units"] == "years"


def test_sessions_and_spaces_are_found(tmp_path):
    write_volume(tmp_path / "sub-1/ses-b/anat/sub-1_ses-b_space-MNI_T1w.nii.gz", np.random.rand(4, 4, 4), GRID.affine)
    (tmp_path / "participants.tsv").write_bytes(
        b"\xef\xbb\xbfparticipant_id\tsession_id\tage\tsex\tventricles_ml\tbrain_ml\r\nsub-1\tses-b\t60\tF\t20\t1400\r\n"
    )
    assert [r.name for r in read_dataset(tmp_path, COVARIATES)] == ["sub-1_ses-b"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda r: (r / "participants.tsv").unlink(), "no participants.tsv"),
        (lambda r: edit_table(r, "brain_ml", "volume"), "no column brain_ml"),
        (lambda r: edit_table(r, "participant_id", "id"), "no column participant_id"),
        (lambda r: edit_table(r, "sub-02\tM", "sub-02\t1"), "sub-02: sex is '1'"),
        (lambda r: edit_table(r, "\t51\t", "\t\t"), "sub-02: age is missing"),
        (lambda r: edit_table(r, "sub-02", "sub-01"), "sub-01 appear more than once"),
        (lambda r: edit_table(r, "sub-02", "../../x"), "not a BIDS id"),
        (lambda r: edit_table(r, "sub-02", "sub-09"), "no T1w image for sub-09"),
        (lambda r: image_path(r, "sub-02").rename(r / "sub-02/anat/other.nii.gz"), "no T1w image for sub-02"),
        (lambda r: (r / "participants.tsv").write_bytes(b"\x00\xff\xfe"), "participants.tsv"),
    ],
)
def test_broken_datasets_are_refused(tmp_path, change, said):
    root = write_dataset(tmp_path / "bids", 2)
    change(root)
    with pytest.raises(UserError, match=said):
        read_dataset(root, COVARIATES)


def test_a_missing_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_dataset(tmp_path / "nowhere", COVARIATES)


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already holds"):
        require_new_folder(tmp_path)
    assert require_new_folder(tmp_path, own="thesis.txt") == tmp_path
    with pytest.raises(UserError, match="is a file"):
        require_new_folder(tmp_path / "thesis.txt")


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


@pytest.fixture(scope="module")
def source(dataset):
    records = read_dataset(dataset, COVARIATES)
    return VolumeSource(records, COVARIATES.encode([r.covariates for r in records]), GRID, "none", cache_gib=1)


def test_a_batch_depends_on_seed_and_number_alone(source):
    once = batches(source, batch_size=2, seed=3)
    again = batches(source, batch_size=2, seed=3)
    for number in (7, 0, 7, 3):
        one, two = once[number], again[number]
        np.testing.assert_array_equal(one["index"], two["index"])
        np.testing.assert_array_equal(one["image"], two["image"])
    assert any((once[k]["index"] != batches(source, batch_size=2, seed=4)[k]["index"]).any() for k in range(5))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_iterating_from_the_middle_goes_on_where_it_stopped(source, size):
    dataset = batches(source, batch_size=size, seed=0)
    iterator = iterate(dataset, 4)
    for number in (4, 5, 6):
        np.testing.assert_array_equal(next(iterator)["index"], dataset[number]["index"])


def test_every_epoch_is_another_permutation(source):
    dataset = batches(source, batch_size=5, seed=1)
    epochs = [tuple(dataset[k]["index"].tolist()) for k in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_the_cache_changes_nothing(dataset, source):
    records = read_dataset(dataset, COVARIATES)
    without = VolumeSource(records, source.conditions, GRID, "none", cache_gib=0)
    for _ in range(2):
        np.testing.assert_array_equal(without[2]["image"], source[2]["image"])


def people(count):
    return [Scan(f"sub-{i}", s, None, {}) for i in range(count) for s in ("ses-1", "ses-2")]


def test_split_keeps_people_together_and_stays_when_others_join():
    train, validation = split(people(200), 0.1)
    assert not {r.participant_id for r in train} & {r.participant_id for r in validation}
    assert len(train) + len(validation) == 400
    assert 20 <= len(validation) <= 80
    more = split(people(400), 0.1)[1]
    assert {r.name for r in validation} == {r.name for r in more if int(r.participant_id[4:]) < 200}


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.99])
def test_split_leaves_neither_side_empty(fraction):
    train, validation = split(people(3), fraction)
    assert train and validation


def test_one_participant_cannot_be_split():
    with pytest.raises(UserError, match="at least two"):
        split(people(1), 0.5)
