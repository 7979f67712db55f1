"""A BIDS dataset: written, read for training, what is left out of it, and what stops it."""

import os

import numpy as np
import pytest

from brainldm.datasets import bids
from brainldm.datasets.bids import image_path, read_dataset, read_participants, write_excluded
from brainldm.datasets.covariates import Covariates, parse_extra
from brainldm.datasets.find import find_scans
from brainldm.datasets.scans import Excluded, inside
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_json
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume

GRID = training_grid(4)
COVARIATES = Covariates()
HEAD = "participant_id\tsex\tage\tventricles_ml\tbrain_ml\tsplit\tsite"


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
def written(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "bids")


def edit_table(root, old, new):
    table = root / "participants.tsv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))


def test_reading_what_was_written(written):
    records = read_dataset(written, COVARIATES)
    assert [r.name for r in records] == [f"sub-{i:02d}" for i in range(1, 6)]
    assert records[1].covariates == {"sex": "M", "age": 51.0, "ventricles_ml": 21.0, "brain_ml": 1401.0}
    assert read_json(written / "dataset_description.json")["GeneratedBy"] == [{"Name": "test"}]
    assert read_json(written / "participants.json")["age"]["Units"] == "years"


def test_sessions_and_spaces_are_found(tmp_path):
    write_volume(tmp_path / "sub-1/ses-b/anat/sub-1_ses-b_space-MNI_T1w.nii.gz", np.random.rand(4, 4, 4), GRID.affine)
    (tmp_path / "participants.tsv").write_bytes(
        b"\xef\xbb\xbfparticipant_id\tsession_id\tage\tsex\tventricles_ml\tbrain_ml\r\nsub-1\tses-b\t60\tF\t20\t1400\r\n"
    )
    assert [r.name for r in read_dataset(tmp_path, COVARIATES)] == ["sub-1_ses-b"]


def sessions_dataset(root):
    """Two people with a table of sessions each, of other columns, and one without."""
    for name in ("sub-1/ses-a", "sub-1/ses-b", "sub-2/ses-a", "sub-3"):
        path = root / name / "anat" / f"{name.replace('/', '_')}_T1w.nii.gz"
        write_volume(path, np.random.default_rng(0).random((4, 4, 4)), GRID.affine)
    (root / "participants.tsv").write_text("participant_id\tsex\tage\nsub-1\tF\t61\nsub-2\tM\t62\nsub-3\tF\t63\n")
    (root / "sessions.json").write_text('{"brain_ml": {"Units": "mL"}}')
    (root / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\tbrain_ml\nses-a\t60\t1400\nses-b\t70\t1380\n")
    (root / "sub-2/sub-2_sessions.tsv").write_text("session_id\tbrain_ml\tage\nses-a\t1500\tn/a\n")
    return root


def test_what_differs_between_sessions_is_read_from_their_tables(tmp_path):
    root = sessions_dataset(tmp_path)
    expected = {
        "sub-1_ses-a": {"sex": "F", "age": 60.0},
        "sub-1_ses-b": {"sex": "F", "age": 70.0},
        "sub-2_ses-a": {"sex": "M", "age": 62.0},
        "sub-3": {"sex": "F", "age": 63.0},
    }
    covariates = Covariates(COVARIATES.items[:2])
    assert {scan.name: scan.covariates for scan in read_dataset(root, covariates)} == expected
    found = {scan.name: scan.covariates for scan in find_scans(root).scans}
    assert {name: {"sex": row["sex"], "age": float(row["age"])} for name, row in found.items()} == expected
    assert found["sub-1_ses-b"]["brain_ml"] == "1380"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda r: (r / "sub-1/sub-1_sessions.tsv").write_text("visit\tage\n1\t60\n"), "no column session_id"),
        (lambda r: (r / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-a\n"), "line 2: 1 fields"),
        (lambda r: (r / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-a\told\n"), "age is 'old'"),
    ],
)
def test_broken_tables_of_sessions_are_refused(tmp_path, change, said):
    change(sessions_dataset(tmp_path))
    with pytest.raises(UserError, match=said):
        read_dataset(tmp_path, Covariates(COVARIATES.items[:2]))


def test_a_table_of_sessions_elsewhere_is_not_read(tmp_path):
    root = sessions_dataset(tmp_path / "root")
    table = (root / "sub-2/sub-2_sessions.tsv").rename(tmp_path / "outside.tsv")
    (root / "sub-2/sub-2_sessions.tsv").symlink_to(table)
    with pytest.raises(UserError, match="leads out of the dataset"):
        read_dataset(root, Covariates(COVARIATES.items[:2]))


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


def dataset(root, *rows, head=HEAD):
    """Rows as text; an image (not looked into) for every participant that is a BIDS id."""
    root.mkdir(exist_ok=True)
    (root / "participants.tsv").write_text("\n".join([head, *rows]) + "\n")
    for row in rows:
        who = row.split("\t")[0]
        if "/" not in who:
            (root / who / "anat").mkdir(parents=True, exist_ok=True)
            (root / who / "anat" / f"{who}_T1w.nii.gz").touch()
    return root


def row(who, sex="F", age="60", ventricles="30", brain="1500", split="train", site="A"):
    return "\t".join((who, sex, age, ventricles, brain, split, site))


GOOD = [row(f"sub-{k}") for k in range(8)]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "bids"


def test_unusable_rows_up_to_a_share_are_left_out_and_listed(root, tmp_path):
    dataset(root, *GOOD, row("sub-old", age="850"), row("sub-gap", brain="n/a"))
    with pytest.raises(UserError, match=r"2 of 10 scans cannot be used.*0.1 is allowed.*sub-old.*sub-gap"):
        read_dataset(root, Covariates(), max_excluded=0.1)
    found = read_dataset(root, Covariates(), max_excluded=0.2)
    assert [record.name for record in found] == [f"sub-{k}" for k in range(8)]
    assert len(found) == 8 and found[0].covariates["age"] == 60
    assert [entry.name for entry in found.excluded] == ["sub-old", "sub-gap"]
    write_excluded(tmp_path / "excluded.tsv", found.excluded)
    lines = (tmp_path / "excluded.tsv").read_text().splitlines()
    assert len(lines) == 3 and "brain_ml is missing. Measure it" in lines[1] and lines[1].startswith("sub-gap\tn/a\t")


@pytest.mark.parametrize(
    "bad, said",
    [
        (row("sub-x", sex="3"), "sub-x: sex is '3'"),
        (row("sub-x", age="sixty"), "sub-x: age is 'sixty'"),
        (row("sub-x", age="850"), "sub-x: age is '850', which is no age"),
        (row("sub-x", brain="-5"), "sub-x: brain_ml is '-5', which is no volume"),
        (row("sub-x", age=""), "sub-x: age is missing"),
        (row("../x"), "'../x'.* is not a BIDS id"),
        (row("sub-a/b"), "is not a BIDS id"),
        (row("sub-" + "x" * 65), "is not a BIDS id"),
        (row("sub-0"), "sub-0 appear more than once"),
    ],
)
def test_one_bad_row_stops_a_run_that_allows_none(root, bad, said):
    dataset(root, *GOOD, bad)
    with pytest.raises(UserError, match=said):
        read_dataset(root, Covariates())
    assert len(read_dataset(root, Covariates(), max_excluded=0.3)) in (7, 8)


def test_a_dataset_of_nothing_but_bad_rows_is_refused_whatever_is_allowed(root):
    dataset(root, row("sub-a", age="x"), row("sub-b", age="60", sex="3"))
    with pytest.raises(UserError, match="2 of 2 scans"):
        read_dataset(root, Covariates(), max_excluded=1)


@pytest.mark.parametrize("name, cells", [("ventricles_ml", {"ventricles": "n/a"}), ("brain_ml", {"brain": ""})])
def test_a_volume_that_nobody_has_is_to_be_measured_or_left_out(root, name, cells):
    dataset(root, *(row(f"sub-{k}", **cells) for k in range(3)))
    rest = tuple(other for other in Covariates().names if other != name)
    with pytest.raises(UserError, match=f"{name} is missing for all 3 scans. Measure it first, or leave") as caught:
        read_dataset(root, Covariates(), max_excluded=1)
    assert f"config.covariates.names={rest!r}" in str(caught.value)
    assert len(read_dataset(root, Covariates(tuple(Covariates()[other] for other in rest)))) == 3


def test_the_column_split(root):
    said = ["train", "Training", "val", "validation", "TEST", "n/a", "odd"]
    dataset(root, *(row(f"sub-{k}", split=text) for k, text in enumerate(said)))
    found = [record.split for record in read_dataset(root, Covariates())]
    assert found == ["train", "train", "validation", "validation", "test", None, "odd"]


def test_further_conditions_are_read(root):
    dataset(root, *GOOD, row("sub-b", site="b"))
    covariates = Covariates((Covariates()["age"], parse_extra("site=A|B")))
    records = read_dataset(root, covariates)
    assert records[0].covariates == {"age": 60.0, "site": "A"} and records[-1].covariates["site"] == "B"
    with pytest.raises(UserError, match="no column scanner"):
        read_dataset(root, Covariates((parse_extra("scanner=A|B"),)))


def test_uk_biobank_names_in_a_dataset(root):
    dataset(root, "sub-1\t1\t63\t30000\t1500000", head="participant_id\t31-0.0\t21003-2.0\t25004-2.0\t25009-2.0")
    record = read_dataset(root, Covariates())[0]
    assert record.covariates == {"sex": "M", "age": 63.0, "ventricles_ml": 30.0, "brain_ml": 1500.0}
    assert set(read_participants(root).columns) == {"participant_id", *Covariates().names}


def test_a_coding_that_nobody_needs_is_not_asked_for(root):
    dataset(root, *(row(f"sub-{k}", sex="2") for k in range(2)))
    assert len(read_dataset(root, Covariates((Covariates()["age"],)))) == 2
    with pytest.raises(UserError, match="sub-0: sex is '2', which could mean anything"):
        read_dataset(root, Covariates())


def test_images_can_be_gone_when_they_are_not_needed(root):
    dataset(root, *GOOD)
    (root / "sub-3/anat/sub-3_T1w.nii.gz").unlink()
    with pytest.raises(UserError, match="no T1w image for sub-3"):
        read_dataset(root, Covariates())
    found = read_dataset(root, Covariates(), need_images=False)
    assert len(found) == 8 and found[3].path is None and found[4].path is not None


def test_a_folder_that_cannot_be_read_is_said_to_be_so(root, monkeypatch):
    dataset(root, *GOOD)
    scandir = os.scandir

    def refuse(path):
        if "sub-3" in str(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"sub-3/anat: cannot be read \(Permission denied\)"):
        read_dataset(root, Covariates())


def test_descriptions_that_cannot_be_read_are_not_called_bad_json(root, monkeypatch):
    dataset(root, *GOOD)
    (root / "participants.json").write_text("{}")
    opened = os.open

    def refuse(path, *arguments, **named):
        if str(path).endswith("participants.json"):
            raise PermissionError(13, "denied")
        return opened(path, *arguments, **named)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UserError, match=r"participants.json: cannot be read \(denied\)"):
        read_dataset(root, Covariates())


def test_ids_that_begin_alike_do_not_share_images(root):
    dataset(root, row("sub-1"), row("sub-10"))
    (root / "sub-1/anat/sub-10_T1w.nii.gz").touch()
    assert read_dataset(root, Covariates())[0].path.name == "sub-1_T1w.nii.gz"


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_links_out_of_the_dataset_are_not_followed(root, tmp_path, linked):
    dataset(root, *GOOD)
    outside = tmp_path / "private/anat"
    outside.mkdir(parents=True)
    (outside / "sub-0_T1w.nii.gz").touch()
    (root / "sub-0/anat/sub-0_T1w.nii.gz").unlink()
    if linked == "file":
        (root / "sub-0/anat/sub-0_T1w.nii.gz").symlink_to(outside / "sub-0_T1w.nii.gz")
    else:
        (root / "sub-0/anat").rmdir()
        (root / "sub-0/anat").symlink_to(outside)
    with pytest.raises(UserError, match="sub-0_T1w.nii.gz: a symbolic link leads out"):
        read_dataset(root, Covariates())


def test_a_table_that_is_a_link_out_of_the_dataset_is_not_read(root, tmp_path):
    dataset(root, *GOOD)
    table = root / "participants.tsv"
    table.rename(tmp_path / "elsewhere.tsv")
    table.symlink_to(tmp_path / "elsewhere.tsv")
    for read in (lambda: read_participants(root), lambda: find_scans(root)):
        with pytest.raises(UserError, match="participants.tsv: a symbolic link leads out of the dataset"):
            read()
    table.unlink()
    (tmp_path / "elsewhere.tsv").rename(root / "kept.tsv")
    table.symlink_to("kept.tsv")
    assert len(read_participants(root).rows) == len(GOOD)


def test_a_link_to_the_dataset_is_the_dataset(root, tmp_path):
    dataset(root, *GOOD)
    (tmp_path / "link").symlink_to(root)
    assert len(read_dataset(tmp_path / "link", Covariates())) == 8


def test_inside(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/out").symlink_to(tmp_path)
    assert inside(tmp_path, tmp_path / "a/b/../c")
    assert not inside(tmp_path / "a", tmp_path / "a/../b")
    assert not inside(tmp_path / "a", tmp_path / "a/out/b")
    assert not inside(tmp_path / "a", tmp_path / "ab")


def test_a_reason_stays_on_its_line(tmp_path):
    write_excluded(tmp_path / "e.tsv", [Excluded("sub-a\n_ses-1", tmp_path / "x\ty", "find", "two\nlines\tand a tab")])
    lines = (tmp_path / "e.tsv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].split("\t")[4] == "two lines and a tab"
    write_excluded(tmp_path / "e.tsv", [Excluded("\udcff.nii", None, "find", "no id")])
    assert b"\\udcff.nii" in (tmp_path / "e.tsv").read_bytes()
