"""Scans found in datasets, folders, lists and tables, and everything left out with its reason."""

import os
import re

import nibabel as nib
import numpy as np
import pytest

from brainldm.datasets.bids import write_excluded
from brainldm.datasets.find import find_scans
from brainldm.datasets.joining import join_values
from brainldm.datasets.tables import read_table
from brainldm.runtime.errors import UserError

STANDARD = {"sex": "n/a", "age": "n/a", "ventricles_ml": "n/a", "brain_ml": "n/a"}


def touch(root, *names):
    """Files that are found; nothing is read of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(found):
    return [scan.name for scan in found.scans]


def left_out(found):
    return {entry.name: entry.reason for entry in found.excluded}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_a_bids_dataset(root):
    touch(
        root,
        "sub-b/anat/sub-b_T1w.nii.gz",
        "sub-b/anat/sub-b_T2w.nii.gz",
        "sub-b/anat/sub-b_T1w.json",
        "sub-a/ses-2/anat/sub-a_ses-2_space-MNI_T1w.nii",
        "sub-a/ses-1/anat/sub-a_ses-1_T1w.nii.gz",
        "sub-a/ses-1/anat/sub-a_ses-1_desc-brain_mask.nii.gz",
        "sub-a/ses-3/pet/sub-a_ses-3_pet.nii.gz",
        "derivatives/x/sub-a/anat/sub-a_T1w.nii.gz",
        "README",
    )
    (root / "participants.tsv").write_text("participant_id\tage\tsite\nsub-a\t60\tX\nsub-b\tn/a\tY\n")
    found = find_scans(root)
    assert names(found) == ["sub-a_ses-1", "sub-a_ses-2", "sub-b"]
    assert found.excluded == []
    assert found.scans[0].covariates == {**STANDARD, "age": "60", "site": "X"}
    assert found.scans[0].mask == root / "sub-a/ses-1/anat/sub-a_ses-1_desc-brain_mask.nii.gz"
    assert found.scans[1].mask is None and found.scans[1].session_id == "ses-2"
    assert found.scans[2].path == root / "sub-b/anat/sub-b_T1w.nii.gz"


def test_bids_without_a_table(root):
    touch(root, "sub-1/anat/sub-1_T1w.nii.gz")
    assert find_scans(root).scans[0].covariates == STANDARD


def test_what_is_wrong_in_a_bids_dataset(root, tmp_path):
    outside = touch(tmp_path / "elsewhere", "anat/sub-folder_T1w.nii.gz", "scan.nii.gz")
    touch(
        root,
        "sub-good/anat/sub-good_T1w.nii.gz",
        "sub-twice/anat/sub-twice_run-1_T1w.nii.gz",
        "sub-twice/anat/sub-twice_run-2_T1w.nii.gz",
        "sub-none/anat/sub-none_T2w.nii.gz",
        "sub-no_id/anat/sub-no_id_T1w.nii.gz",
        "sub-other/anat/sub-good_T1w.nii.gz",
        "sub-visit/ses-a b/anat/sub-visit_T1w.nii.gz",
        "sub-inside/anat/target.nii.gz",
    )
    (root / "sub-link/anat").mkdir(parents=True)
    (root / "sub-link/anat/sub-link_T1w.nii.gz").symlink_to(outside / "scan.nii.gz")
    (root / "sub-folder").symlink_to(outside)
    (root / "sub-inside/anat/sub-inside_T1w.nii.gz").symlink_to("target.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-good\t60\nsub-absent\t70\nsub-none\t5\n")
    found = find_scans(root)
    assert names(found) == ["sub-good", "sub-inside"]
    reasons = left_out(found)
    expected = {
        "sub-twice": "2 T1w images .*run-1.*pattern",
        "sub-none": "no T1w image",
        "sub-no_id": "no BIDS id",
        "sub-other": "whose is it",
        "sub-visit_ses-a b": "no BIDS id: ses-",
        "sub-link": "symbolic link leads out",
        "sub-folder": "symbolic link leads out",
        "sub-absent": "participants.tsv: it has no T1w image",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert re.search(reason, reasons[name]), (name, reasons[name])
    chosen = find_scans(root, pattern="*_run-2_T1w.nii.gz")
    assert names(chosen) == ["sub-twice"]


def test_a_folder_of_scans(root):
    touch(
        root,
        "b/IXI012-HH-1211-T1.nii.gz",
        "a/scan 7.nii",
        "sub-01_ses-2_T1w.nii.gz",
        "freesurfer/bert/mri/orig.mgz",
        "notes.txt",
        ".hidden/x.nii.gz",
    )
    assert names(find_scans(root)) == ["sub-01_ses-2", "sub-IXI012HH1211", "sub-bert", "sub-scan7"]


def test_what_is_wrong_in_a_folder(root, tmp_path):
    outside = touch(tmp_path / "elsewhere", "private.nii.gz")
    touch(
        root,
        "good.nii.gz",
        "a-b.nii.gz",
        "x/ab.nii.gz",
        "ünal.nii.gz",
        "---.nii.gz",
        f"{'l' * 65}.nii.gz",
        "good_mask.nii.gz",
        "bert/mri/orig.mgz",
        "bert/mri/nu.mgz",
    )
    (root / "stolen.nii.gz").symlink_to(outside / "private.nii.gz")
    (root / "linked").symlink_to(outside)
    (root / "again.nii.gz").symlink_to(root / "good.nii.gz")
    (root / "loop").symlink_to(root)
    found = find_scans(root)
    assert names(found) == ["sub-good"]
    reasons = [(entry.name, entry.reason) for entry in found.excluded]
    assert len(reasons) == 11
    for name, said in [
        ("sub-ab", "several images would be sub-ab"),
        ("sub-bert", "several images"),
        ("ünal.nii.gz", "gives no id"),
        ("---.nii.gz", "gives no id"),
        ("l" * 65 + ".nii.gz", "1 to 64"),
        ("good_mask.nii.gz", "mask, a segmentation"),
        ("stolen.nii.gz", "leads out of"),
        ("linked", "leads out of"),
        ("again.nii.gz", "found where it lies"),
    ]:
        assert any(n == name and said in reason for n, reason in reasons), (name, reasons)
    assert names(find_scans(root, pattern="*/mri/orig.mgz")) == ["sub-bert"]
    assert names(find_scans(root, pattern="*_mask.nii.gz")) == ["sub-goodmask"]


def test_a_list(root):
    touch(root, "scans/a.nii.gz", "scans/b.nii")
    listing = root / "scans.txt"
    listing.write_text(
        f"# mine\n\nscans/a.nii.gz\n{root}/scans/b.nii\nscans/gone.nii.gz\nscans/../scans/a.nii.gz\nnotes.pdf\n"
    )
    found = find_scans(listing)
    assert names(found) == ["sub-a", "sub-b"]
    assert left_out(found) == {
        "scans/gone.nii.gz": "no such file",
        "scans/../scans/a.nii.gz": "listed twice",
        "notes.pdf": "not named as a NIfTI or MGH file (.nii, .nii.gz, .mgh, .mgz)",
    }


def test_a_table_with_images(root):
    touch(root, *(f"{n}.nii.gz" for n in "abcdefgh"), "m.nii.gz")
    table = root / "scans.csv"
    table.write_text(
        "subject,Session,File,mask,Age,note\n"
        "P-01,1,a.nii.gz,m.nii.gz,60,x\n"
        "P-01,2,b.nii.gz,,61,\n"
        "P-02,,c.nii.gz,gone.nii.gz,62,\n"
        "../../etc,,d.nii.gz,,63,\n"
        "P-03,,gone.nii.gz,,64,\n"
        "P-04,,,,65,\n"
        "P-05,,a.nii.gz,,66,\n"
        "P-06,,e.nii.gz,,old,\n"
        "P-07,,f.nii.gz,,67,\n"
        "P07,,g.nii.gz,,67,\n"
        ",,h.nii.gz,,68,\n"
    )
    found = find_scans(table)
    assert names(found) == ["sub-P01_ses-1", "sub-P01_ses-2", "sub-h"]
    assert found.scans[0].mask == root / "m.nii.gz" and found.scans[1].mask is None
    assert found.scans[0].covariates == {**STANDARD, "age": "60", "note": "x"}
    reasons = left_out(found)
    assert "could lead out" in reasons["../../etc"]
    assert reasons["P-03"] == "no such file" and "no image" in reasons["P-04"]
    assert reasons["P-05"] == "listed twice" and "'old'" in reasons["P-06"] and "no such mask" in reasons["P-02"]
    assert "several images would be sub-P07" in reasons["sub-P07"]


@pytest.mark.parametrize(
    "bad", ["../x", "..", "a/b", "a\\b", "/etc/passwd", "x\u00e9", "x" * 65, "---", "sub-../y", "a\tb", "a;rm -rf"]
)
def test_ids_that_could_leave_the_folder(root, bad):
    touch(root, "a.nii.gz")
    (root / "t.csv").write_text(f'id,image\n"{bad}",a.nii.gz\n')
    found = find_scans(root / "t.csv")
    assert not found.scans
    assert len(found.excluded) == 1 and "id" in found.excluded[0].reason


JOINS = {
    "as it is": (["sub-01", "sub-02"], "participant_id", ["sub-01", "sub-02"]),
    "without sub-": (["sub-01", "sub-02"], "id", ["01", "02"]),
    "without zeros": (["sub-001", "sub-002"], "subject", ["1", "2"]),
    "with zeros": (["sub-1", "sub-2"], "subject", ["0001", "0002"]),
    "other case": (["sub-OAS1", "sub-OAS2"], "ID", ["oas1", "OAS_2"]),
    "made a float": (["sub-1000012", "sub-1000023"], "eid", ["1000012.0", "1000023.0"]),
    "number of a cohort": (["sub-IXI012Guys0828T1", "sub-IXI013HH1212T1"], "IXI_ID", ["12", "13"]),
    "beginning": (["sub-IXI012HH1211T1ds", "sub-IXI013HH1212T1ds"], "MRID", ["IXI012-HH-1211", "IXI013-HH-1212"]),
}


@pytest.mark.parametrize("how", JOINS)
def test_a_table_is_joined_by_ids_however_written(root, tmp_path, how):
    people, column, ids = JOINS[how]
    touch(root, *(f"{person}/anat/{person}_T1w.nii.gz" for person in people))
    table = tmp_path / "t.csv"
    table.write_text(f"{column},age,site\n" + "".join(f"{i},{60 + k},s{k}\n" for k, i in enumerate(ids)))
    found = find_scans(root, table=table)
    assert [scan.covariates["age"] for scan in found.scans] == ["60", "61"]
    assert [scan.covariates["site"] for scan in found.scans] == ["s0", "s1"]


@pytest.mark.parametrize(
    "people, ids",
    [
        (["sub-01", "sub-001"], ["1"]),
        (["sub-1x"], ["01", "001"]),
        (["sub-5"], ["05", "005"]),
        (["sub-12"], ["1"]),
        (["sub-abc"], ["ab"]),
        (["sub-1a", "sub-1b"], ["1"]),
        (["sub-ab", "sub-AB"], ["ab"]),
    ],
)
def test_ids_that_could_mean_two_people_are_not_joined(root, tmp_path, people, ids):
    touch(root, *(f"{person}/anat/{person}_T1w.nii.gz" for person in people))
    (tmp_path / "t.csv").write_text("id,age\n" + "".join(f"{i},60\n" for i in ids))
    found = find_scans(root, table=tmp_path / "t.csv")
    assert {scan.covariates["age"] for scan in found.scans} == {"n/a"}
    assert any(f"no row for {len(people)}" in note for note in found.notes)


@pytest.mark.parametrize(
    "stranger, said",
    [
        ("Ольга", "no scan for 1 of 2 rows"),
        ("é", "no scan for 1 of 2 rows"),
        ("---", "1 of 2 rows have no id"),
        ("", "1 of 2 rows have no id"),
    ],
)
def test_a_row_of_nobody_here_labels_no_scan(root, stranger, said):
    """Its id has no Latin letter or digit, as the ids of scans have, or none at all."""
    touch(root, *(f"sub-000{k}/anat/sub-000{k}_T1w.nii.gz" for k in (1, 2, 3, 4)))
    (root / "participants.tsv").write_text(
        f"participant_id\tsex\tage\tventricles_ml\tbrain_ml\n{stranger}\tM\t81.0\t60.0\t1310.0\nsub-0002\tF\t50\t20\t1500\n"
    )
    found = find_scans(root)
    assert {scan.name: scan.covariates["age"] for scan in found.scans} == {
        "sub-0001": "n/a",
        "sub-0002": "50",
        "sub-0003": "n/a",
        "sub-0004": "n/a",
    }
    notes = " ".join(found.notes)
    assert "no row for 3 of 4 scans" in notes and said in notes
    assert [entry.reason.rpartition(": ")[2] for entry in found.excluded] == ["it has no T1w image"]


@pytest.mark.parametrize("written", ["Ольга", "ольга", "Ольга-"])
def test_ids_of_any_script_are_joined_where_they_agree(tmp_path, written):
    (tmp_path / "t.csv").write_text(f"id,age\n{written},60\nОльга2,70\n")
    joined = join_values([("sub-Ольга", None), ("sub-2", None)], read_table(tmp_path / "t.csv"))
    assert joined.values == [{"age": "60"}, {}]


def test_an_exact_id_goes_before_a_similar_one(root, tmp_path):
    touch(root, "sub-1/anat/sub-1_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "t.csv").write_text("id,age\n1,60\n01,70\n")
    found = find_scans(root, table=tmp_path / "t.csv")
    assert {scan.name: scan.covariates["age"] for scan in found.scans} == {"sub-1": "60", "sub-01": "70"}


def test_sessions_are_joined_too(root, tmp_path):
    touch(root, *(f"sub-a/ses-0{k}/anat/sub-a_ses-0{k}_T1w.nii.gz" for k in (1, 2)), "sub-b/anat/sub-b_T1w.nii.gz")
    (tmp_path / "t.csv").write_text("id,session,age\na,1,60\na,ses-02,62\nb,1,50\nb,2,52\n")
    found = find_scans(root, table=tmp_path / "t.csv")
    assert {scan.name: scan.covariates["age"] for scan in found.scans} == {"sub-a_ses-01": "60", "sub-a_ses-02": "62"}
    assert "2 rows are of sub-b" in left_out(found)["sub-b"]


def test_a_row_with_an_odd_value_leaves_its_scan_out(root, tmp_path):
    touch(root, "sub-a/anat/sub-a_T1w.nii.gz", "sub-b/anat/sub-b_T1w.nii.gz")
    (tmp_path / "t.csv").write_text("id,age\na,60\nb,850\n")
    found = find_scans(root, table=tmp_path / "t.csv")
    assert names(found) == ["sub-a"]
    assert "'850', which is no age in years" in left_out(found)["sub-b"]


def test_people_of_the_table_are_found_however_their_ids_are_written(root):
    """A table without sub- and zeros, beside files in a plain folder: nobody is missing who is there."""
    touch(root, "AB007.nii.gz", "AB012_T1w.nii.gz")
    (root / "participants.tsv").write_text("ID\tage\nab7\t60\nAB-012\t61\nAB013\t62\n")
    found = find_scans(root)
    assert [scan.covariates["age"] for scan in found.scans] == ["60", "61"]
    assert left_out(found) == {"AB013": f"{root / 'participants.tsv'}: it has no T1w image"}


def test_a_session_of_the_table_without_an_image_is_listed(root):
    touch(root, "sub-a/ses-1/anat/sub-a_ses-1_T1w.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tsession_id\tage\nsub-a\tses-1\t60\nsub-a\tses-2\t62\n")
    found = find_scans(root)
    assert names(found) == ["sub-a_ses-1"] and found.scans[0].covariates["age"] == "60"
    assert list(left_out(found)) == ["sub-a_ses-2"]


def test_a_table_fills_gaps_and_adds_to_the_dataset_s_own(root, tmp_path):
    touch(root, "sub-a/anat/sub-a_T1w.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tage\tsite\nsub-a\t60\tX\n")
    (tmp_path / "t.csv").write_text("eid,age,25004-2.0\na,,30000\n")
    values = find_scans(root, table=tmp_path / "t.csv").scans[0].covariates
    assert values == {**STANDARD, "age": "60", "site": "X", "ventricles_ml": "30"}


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda r: r / "nowhere", "no such folder or file"),
        (lambda r: touch(r, "a.pdf") / "a.pdf", "no participants in it"),
        (lambda r: (r / "t.csv").write_text("id,age\na,60\n") and r / "t.csv", "no column of images"),
        (lambda r: (r / "l.txt").write_bytes(b"\xff\xfe\xff") and r / "l.txt", "cannot be read as a list"),
    ],
)
def test_sources_that_are_none(root, make, said):
    with pytest.raises(UserError, match=said):
        find_scans(make(root))


def test_a_table_without_ids_cannot_be_joined(root, tmp_path):
    touch(root, "sub-a/anat/sub-a_T1w.nii.gz")
    (tmp_path / "t.csv").write_text("age,site\n60,x\n")
    with pytest.raises(UserError, match="no column says whose the rows are"):
        find_scans(root, table=tmp_path / "t.csv")


def test_excluded_scans_are_written_as_a_table(root, tmp_path):
    touch(
        root, "sub-a/anat/sub-a_T2w.nii.gz", "sub-b/ses-1/anat/sub-b_ses-1_T1w.nii", "sub-b/ses-1/anat/sub-b_x_T1w.nii"
    )
    write_excluded(tmp_path / "excluded.tsv", find_scans(root).excluded)
    lines = [line.split("\t") for line in (tmp_path / "excluded.tsv").read_text().splitlines()]
    assert lines[0] == ["participant_id", "session_id", "source", "stage", "reason"]
    assert lines[1] == ["sub-a", "n/a", str(root / "sub-a"), "find", "no T1w image"]
    assert lines[2][:2] == ["sub-b", "ses-1"] and len(lines) == 3


def test_real_folders(shared):
    ixi = shared / "data/ixi_2mm"
    found = find_scans(ixi, pattern="*-T1_ds.nii.gz", table=ixi / "IXI_demog_n10.csv")
    assert [scan.covariates["age"] for scan in found.scans] == ["38.78", "46.71", "23.35"]
    assert len(find_scans(shared / "data/oasis_mni_1mm").scans) == 24


def test_finding_many_scans_asks_for_each_folder_once(root, monkeypatch):
    """Two folders a person are listed and the root twice; no file is opened or resolved."""
    count = 200
    for k in range(count):
        folder = root / f"sub-{k:05d}/anat"
        os.makedirs(folder)
        (folder / f"sub-{k:05d}_T1w.nii.gz").touch()
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\n" + "".join(f"sub-{k:05d}\t60\tF\n" for k in range(count))
    )
    listed, scandir = [], os.scandir
    monkeypatch.setattr("os.scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr("os.path.realpath", lambda *_, **__: pytest.fail("a path was resolved"))
    found = find_scans(root)
    assert len(listed) == 2 * count + 2
    assert len(found.scans) == count and not found.excluded


def test_what_is_found_can_be_read(root):
    from brainldm.volumes.nifti import read_volume

    data = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    for name in ("a.nii.gz", "b.nii"):
        nib.save(nib.Nifti1Image(data, np.eye(4)), root / name)
    nib.save(nib.MGHImage(data, np.eye(4)), root / "c.mgz")
    for scan in find_scans(root).scans:
        np.testing.assert_array_equal(read_volume(scan.path).data, data)
    assert len(find_scans(root / "b.nii").scans) == 1
