"""The fingerprint of a dataset: every planted fault is found and named, and a clean dataset has none."""

import gzip
import hashlib
import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from brainldm.fingerprint.options import CheckOptions

from brainldm.datasets.covariates import Covariates
from brainldm.fingerprint.collect import collect
from brainldm.fingerprint.data_costs import DataSizes, costs
from brainldm.fingerprint.distributions import PERCENTILES, describe_columns, intensities
from brainldm.fingerprint.duplicates import same_files
from brainldm.fingerprint.page import render
from brainldm.fingerprint.text import lines
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import write_volume
from brainldm.volumes.probe import look_at

GRID = training_grid(4)
SEX_AGE = Covariates(tuple(Covariates()[name] for name in ("sex", "age")))
TWO = CheckOptions(covariates=SEX_AGE)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(GRID.shape, np.float32)


def image_of(root, name: str, suffix: str = ".nii"):
    person, session = name.split("_")
    return root / person / session / "anat" / f"{name}_space-MNI152NLin2009aSym_T1w{suffix}"


def write(root, rows: dict[str, dict], suffix=".nii") -> None:
    """A prepared dataset of noise: `rows` maps sub-X_ses-Y to further cells of its row."""
    columns = ("age", "sex", "split")
    table = ["\t".join(("participant_id", "session_id", *columns))]
    for place, (name, row) in enumerate(rows.items()):
        cells = {"age": f"{50 + place}", "sex": "FM"[place % 2], "split": "train"} | row
        table.append("\t".join((*name.split("_"), *(cells[column] for column in columns))))
        path = image_of(root, name, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, noise(place), GRID.affine)
    (root / "dataset_description.json").write_text('{"Name": "noise", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("\n".join(table) + "\n")


def names(count: int) -> list[str]:
    return [f"sub-{i:02d}_ses-1" for i in range(1, count + 1)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean") / "data"
    write(root, {name: {} for name in names(8)})
    return root


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """12 people, 13 scans; sub-02 and sub-03 are one file, and so on, as the tests say."""
    root = tmp_path_factory.mktemp("faulty") / "data"
    rows = {name: {} for name in names(12)}
    rows["sub-03_ses-1"] = {"split": "test"}
    rows["sub-04_ses-1"] = {"age": "n/a"}
    rows["sub-05_ses-2"] = {"split": "test"}
    rows["sub-08_ses-1"] = {"age": "30"}
    write(root, rows, ".nii.gz")
    shutil.copy(image_of(root, "sub-02_ses-1", ".nii.gz"), image_of(root, "sub-03_ses-1", ".nii.gz"))
    cut = image_of(root, "sub-06_ses-1", ".nii.gz")
    cut.write_bytes(cut.read_bytes()[:-2000])
    write_volume(image_of(root, "sub-07_ses-1", ".nii.gz"), noise(7)[:-1], GRID.affine)
    image_of(root, "sub-09_ses-1", ".nii.gz").write_bytes(
        gzip.compress(gzip.decompress(image_of(root, "sub-10_ses-1", ".nii.gz").read_bytes()), 9, mtime=7)
    )
    with_nan = noise(11)
    with_nan[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(with_nan, GRID.affine), image_of(root, "sub-11_ses-1", ".nii.gz"))
    return root


@pytest.fixture(scope="module")
def found(faulty):
    return collect(faulty, options=TWO)


def test_a_clean_dataset_has_no_findings(clean):
    seen = collect(clean, options=TWO)
    assert [column.name for column in seen.columns] == ["sex", "age", "split"]
    assert (seen.kind, seen.findings, seen.rejected, seen.duplicates) == ("prepared", [], [], [])
    assert seen.counts["scans"] == seen.counts["usable"] == seen.counts["read"] == 8
    assert seen.grid == {"shape": [40, 56, 40], "spacing_mm": 4.0}
    assert seen.geometry == {
        "shape": {"40x56x40": 8},
        "spacing in mm": {"4x4x4": 8},
        "orientation": {"RAS": 8},
        "data type": {"int16, with slope": 8},
    }
    assert seen.splits == {"train": 8}


REJECTED = {
    "sub-04_ses-1": ("training", "age is missing"),
    "sub-06_ses-1": ("reading", "cut off"),
    "sub-07_ses-1": ("training", "39x56x40"),
    "sub-11_ses-1": ("reading", "1 voxels are NaN"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_planted_fault_is_found_and_named(found, name):
    (one,) = [one for one in found.rejected if one.name == name]
    stage, reason = REJECTED[name]
    assert one.stage == stage and reason in one.reason and name in str(one.path)
    assert str(one.path) not in one.reason


def test_nothing_else_is_rejected(found):
    assert {one.name for one in found.rejected} == set(REJECTED)
    assert found.counts["usable"] == 13 - len(REJECTED)


def test_duplicates_are_found_and_their_splits_named(found):
    same = {(one.what, one.scans, one.splits) for one in found.duplicates}
    assert same == {
        ("file", ("sub-02_ses-1", "sub-03_ses-1"), ("test", "train")),
        ("voxels", ("sub-09_ses-1", "sub-10_ses-1"), ("train",)),
    }


def test_a_person_in_two_splits_is_found(found):
    assert found.in_several_splits == {"sub-05": ["test", "train"]}


def test_a_value_outside_the_range_is_counted(found):
    (age,) = [column for column in found.columns if column.name == "age"]
    assert (age.n, age.missing, age.minimum, age.range) == (12, 1, 30, (44, 82))
    assert age.outside == pytest.approx(1 / 12, abs=1e-6)


def test_findings_come_worst_first_and_name_scans(found):
    levels = [one.level for one in found.findings]
    assert levels == sorted(levels, key=("error", "warning", "note").index)
    said = " ".join(one.text for one in found.findings)
    for word in ("sub-06_ses-1", "sub-05 (test, train)", "sub-02_ses-1 = sub-03_ses-1", "age is missing in 1 of 13"):
        assert word in said
    assert "spread over splits" in said


def test_a_file_cut_off_is_found_without_a_sample(faulty):
    seen = collect(faulty, options=CheckOptions(covariates=SEX_AGE, sample=0))
    assert seen.counts["read"] == 1
    assert [one.name for one in seen.rejected if one.stage == "reading"] == ["sub-06_ses-1"]
    assert any("--full" in one.text for one in seen.findings)


def test_the_default_conditions_are_wanted_unless_others_are_named(clean):
    seen = collect(clean)
    assert seen.counts["usable"] == 0
    assert "ventricles_ml is missing" in seen.rejected[0].reason
    assert any("ventricles_ml, brain_ml" in one.text for one in seen.findings)


def test_a_coarser_dataset_than_the_training_grid_is_rejected(clean):
    seen = collect(clean, options=CheckOptions(covariates=SEX_AGE, spacing_mm=2))
    assert {one.reason for one in seen.rejected} == {"voxels of 4 mm, and training is at 2 mm"}
    assert len(seen.rejected) == 8


def test_intensities_outside_0_to_1_are_rejected_when_no_scaling_is_asked_for(tmp_path):
    write(tmp_path, {name: {} for name in names(2)})
    write_volume(image_of(tmp_path, "sub-02_ses-1"), 50 * noise(2), GRID.affine, scale_max=50)
    assert collect(tmp_path, options=TWO).counts["usable"] == 2
    seen = collect(tmp_path, options=CheckOptions(covariates=SEX_AGE, scaling="none"))
    assert [one.name for one in seen.rejected] == ["sub-02_ses-1"]


def test_a_prepared_file_that_changed_is_found_by_its_hash(tmp_path):
    write(tmp_path, {name: {} for name in names(3)})
    for name in names(3):
        path = image_of(tmp_path, name)
        sidecar = {"SHA256": hashlib.sha256(path.read_bytes()).hexdigest(), "SourceSHA256": "0" * 64}
        path.with_suffix(".json").write_text(json.dumps(sidecar | {"SourceSHA256": "01"[name == names(3)[0]] * 64}))
    write_volume(image_of(tmp_path, "sub-02_ses-1"), noise(99), GRID.affine)
    assert collect(tmp_path, options=TWO).rejected == []
    seen = collect(tmp_path, options=CheckOptions(covariates=SEX_AGE, full=True))
    assert [(one.name, one.stage) for one in seen.rejected] == [("sub-02_ses-1", "reading")]
    assert [(one.what, one.scans) for one in seen.duplicates] == [("source", ("sub-02_ses-1", "sub-03_ses-1"))]


def test_raw_scans_in_a_folder(tmp_path):
    flipped = np.diag([-3.0, 3, 3, 1])
    for place in range(3):
        image = nib.Nifti1Image((1000 * noise(place)).astype(">i2"), flipped)
        nib.save(image, tmp_path / f"person{place}.nii.gz")
    (tmp_path / "person3.nii.gz").write_bytes(b"not an image at all")
    nib.save(nib.Nifti1Image(noise(4)[:, :, :10], flipped), tmp_path / "person4.nii.gz")
    labels = np.zeros(GRID.shape, np.uint8)
    labels[5:20, 5:50, 5:35], labels[20:35, 5:50, 5:35] = 2, 3
    nib.save(nib.Nifti1Image(labels, flipped), tmp_path / "person5.nii.gz")
    seen = collect(tmp_path)
    assert seen.kind == "raw" and seen.counts["usable"] == 3
    assert seen.geometry["orientation"] == {"LAS": 5}
    assert seen.geometry["spacing in mm"] == {"3x3x3": 5}
    assert seen.grid["spacing_mm"] == 1
    reasons = {one.name: (one.stage, one.reason) for one in seen.rejected}
    for name, word in {"sub-person3": "named as gzip", "sub-person4": "30 mm", "sub-person5": "labels"}.items():
        assert reasons[name][0] == "reading" and word in reasons[name][1]


def test_a_row_that_is_there_twice_is_found(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    table = root / "participants.tsv"
    lines_of_table = table.read_text().splitlines()
    table.write_text("\n".join([*lines_of_table, lines_of_table[2]]) + "\n")
    seen = collect(root, options=TWO)
    assert seen.repeated_rows == {"sub-02_ses-1": 2}
    assert [(one.name, one.stage) for one in seen.rejected] == [("sub-02_ses-1", "training")]


def test_gaps_and_unknown_words_in_the_column_split_are_found(tmp_path):
    rows = {name: {} for name in names(4)}
    rows["sub-01_ses-1"], rows["sub-02_ses-1"] = {"split": "n/a"}, {"split": "unsure"}
    rows["sub-03_ses-1"] = {"split": "val"}
    write(tmp_path, rows)
    seen = collect(tmp_path, options=TWO)
    assert seen.splits == {"train": 1, "unsure": 1, "validation": 1}
    said = " ".join(one.text for one in seen.findings if one.level == "error")
    assert "1 scan has no split" in said and "split: unsure" in said


def test_no_source_and_no_scans_are_mistakes(tmp_path):
    with pytest.raises(UserError):
        collect(tmp_path / "nowhere")
    with pytest.raises(UserError):
        collect(tmp_path)


def test_the_json_is_the_same_every_time_but_for_what_was_measured(faulty, found):
    first, second = found.as_dict(), collect(faulty, options=CheckOptions(covariates=SEX_AGE, workers=3)).as_dict()
    assert first.pop("measured").keys() == second.pop("measured").keys()
    # Memory per process depends on how many there are.
    assert first.pop("costs")[1:] == second.pop("costs")[1:]
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)


def test_the_page_fetches_nothing_and_names_every_rejected_scan(found):
    page = render(found.as_dict())
    assert not re.search(r"<script|<link|@import|src=\"(?!data:)|url\(|https?://", page)
    assert page.count("data:image/png;base64,") == 2
    for name in REJECTED:
        assert name in page


def test_the_page_escapes_what_comes_from_the_data(clean):
    figures = collect(clean, options=TWO).as_dict()
    figures["source"] = "<b>data</b>"
    figures["splits"] = {"<i>train</i>": 8}
    page = render(figures)
    assert "<b>data" not in page and "<i>train" not in page and "&lt;i&gt;train" in page


def test_the_text_names_rejected_scans_and_is_short(found):
    text = lines(found.as_dict())
    assert all(any(name in line for line in text) for name in REJECTED)
    assert len(text) < 60
    assert text[0].startswith(found.source) and "9 of 13 scans" in text[0]


# ---- parts


def test_headers_agree_with_nibabel(tmp_path):
    affine = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.1, 0.0, 0.2) @ np.diag([-0.7, 1.2, 5.0]), [10.0, -20, 30]
    )
    data = noise(0)[:12, :14, :16]
    for suffix in (".nii", ".nii.gz"):
        path = tmp_path / f"scan{suffix}"
        nib.save(nib.Nifti1Image(data, affine), path)
        seen = look_at(path)
        canonical = nib.as_closest_canonical(nib.load(path))
        assert not seen.problem and not seen.doubtful and seen.size == path.stat().st_size
        assert seen.geometry.ras_shape == canonical.shape
        assert seen.geometry.first_mm == pytest.approx(canonical.affine[:3, 3], abs=0.01)
        assert seen.geometry.spacing_mm == (0.7, 1.2, 5.0)
        assert seen.geometry.orientation == "".join(nib.aff2axcodes(affine))
        assert seen.geometry.oblique_deg == pytest.approx(np.degrees(nib.affines.obliquity(affine)).max(), abs=0.06)
        assert (seen.geometry.data_type, seen.geometry.grid_mm) == ("float32", None)


@pytest.mark.parametrize("kind", (nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage))
@pytest.mark.parametrize("order", ("<", ">"))
def test_every_format_is_looked_at(tmp_path, kind, order):
    data = (100 * noise(0)).astype(f"{order}i2" if kind is not nib.MGHImage else ">i2")
    affine = np.diag([2.0, 3, 4, 1])
    suffix = ".mgz" if kind is nib.MGHImage else ".nii.gz"
    header = None if kind is nib.MGHImage else kind.header_class(endianness=order)
    image = kind(data, affine, header)
    image.set_data_dtype(data.dtype)
    nib.save(image, tmp_path / f"scan{suffix}")
    seen = look_at(tmp_path / f"scan{suffix}")
    assert (seen.problem, seen.doubtful) == ("", False)
    assert seen.geometry.spacing_mm == (2, 3, 4)
    big = order == ">" or kind is nib.MGHImage
    assert seen.geometry.data_type == "int16" + (", big-endian" if big else "")


def test_a_header_that_cannot_be_used_is_named_with_its_own_path(tmp_path):
    for name in ("one.nii", "two.nii"):
        content = nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.uint8), np.eye(4)).to_bytes()
        (tmp_path / name).write_bytes(content)
        assert look_at(tmp_path / name).problem.startswith(f"{tmp_path / name}: 4 dimensions")


@pytest.mark.parametrize("spacing", (2, 4))
@pytest.mark.parametrize("flips", ((1, 1, 1), (-1, 1, 1), (-1, -1, 1)))
def test_a_training_grid_is_known_in_any_orientation(tmp_path, spacing, flips):
    grid = training_grid(spacing)
    data = np.zeros(grid.shape, np.uint8)
    data[0] = 1
    codes = np.array([[axis, flip] for axis, flip in enumerate(flips)])
    nib.save(nib.Nifti1Image(data, grid.affine).as_reoriented(codes), tmp_path / "scan.nii")
    assert look_at(tmp_path / "scan.nii").geometry.grid_mm == spacing
    moved = grid.affine.copy()
    moved[0, 3] += 1
    nib.save(nib.Nifti1Image(data, moved), tmp_path / "scan.nii")
    assert look_at(tmp_path / "scan.nii").geometry.grid_mm is None


def test_lengths_that_do_not_fit_are_doubtful(tmp_path):
    path = tmp_path / "scan.nii"
    write_volume(path, noise(0), GRID.affine)
    content = path.read_bytes()
    packed = gzip.compress(content)
    cases = {"short.nii": content[:-1], "long.nii": content + b"x", "cut.nii.gz": packed[:-9]}
    cases |= {"plain.nii.gz": content, "packed.nii": packed, "empty.nii": b"", "tail.nii.gz": packed + packed[:40]}
    for name, changed in cases.items():
        (tmp_path / name).write_bytes(changed)
        assert look_at(tmp_path / name).doubtful, name
    assert "cannot be read" in look_at(tmp_path / "nowhere.nii").problem


def test_equal_files_are_found_among_files_of_equal_size(tmp_path):
    body = np.random.default_rng(0).bytes(60_000)
    other = bytearray(body)
    other[20_000] ^= 1  # neither in the first piece nor in the middle one
    for name, content in {"a": body, "b": bytes(other), "c": body, "d": body[:-1]}.items():
        (tmp_path / name).write_bytes(content)
    os.link(tmp_path / "d", tmp_path / "e")
    outsides = {name: look_at(tmp_path / name) for name in "abcde"}
    assert outsides["a"].pieces == outsides["b"].pieces
    assert same_files(outsides) == [["a", "c"], ["d", "e"]]
    # What is known is not read again.
    assert same_files(outsides, {"a": "1", "b": "1", "c": "2"}) == [["a", "b"], ["d", "e"]]


def test_columns_are_described_as_what_they_are():
    rows = [{"age": str(40 + i), "sex": "FM"[i % 2], "iq": f"{100 + i}", "site": "AB"[i % 2]} for i in range(30)]
    rows[0] |= {"age": "n/a", "sex": "?", "iq": ""}
    for i, row in enumerate(rows):
        row["note"] = f"word {i}"
    found = {column.name: column for column in describe_columns(rows, Covariates())}
    assert [*found][:4] == ["sex", "age", "ventricles_ml", "brain_ml"]
    age = found["age"]
    assert (age.kind, age.n, age.missing, age.minimum, age.maximum) == ("numbers", 29, 1, 41, 69)
    assert age.outside == pytest.approx(3 / 29, abs=1e-6) and sum(age.histogram["counts"]) == 29
    assert (found["sex"].odd, found["sex"].levels) == (1, {"F": 14, "M": 15})
    assert (found["brain_ml"].kind, found["brain_ml"].missing) == ("empty", 30)
    assert (found["iq"].kind, found["iq"].n, found["iq"].missing, found["iq"].range) == ("numbers", 29, 1, None)
    assert found["site"].levels == {"A": 15, "B": 15}
    assert found["note"].kind == "text"


def test_intensity_percentiles_come_near_those_of_all_voxels():
    data = np.random.default_rng(0).gamma(2.0, 50.0, (80, 112, 80)).astype(np.float32)
    data[:20] = 0
    seen = intensities(data)
    assert (seen.percentiles[0], seen.percentiles[-1]) == (0, pytest.approx(data.max(), rel=1e-5))
    assert seen.background == 0.25
    assert seen.mean == pytest.approx(data.mean(dtype=np.float64), rel=1e-5)
    # Ranks from some 130,000 draws have an sd of at most 0.14 percentage points.
    ranks = [np.mean(data[data > 0] <= value) * 100 for value in seen.percentiles[1:-1]]
    assert ranks == pytest.approx(PERCENTILES[1:-1], abs=0.42)
    small = data[20:, :8, :8]
    inner = np.percentile(small[small > small.min()], PERCENTILES[1:-1])
    assert intensities(small).percentiles[1:-1] == pytest.approx(inner, rel=1e-5)


def test_disk_and_memory_are_those_of_the_arrays():
    rows = {row.stage: row for row in costs(40_000, training_grid(1), 256**3, workers=2, sizes=DataSizes(batch_size=3))}
    assert rows["prepare"].disk_bytes == 40_000 * (352 + 160 * 224 * 160 * 2)
    assert rows["prepare"].memory_bytes == 2 * 4 * (256**3 + 160 * 224 * 160)
    assert rows["prepare"].seconds == 40_000 * 8 / 2 and rows["diffusion training"].seconds is None
    volume = 4 * 160 * 224 * 160
    assert rows["autoencoder training"].memory_bytes == (2**32 // volume + 3) * volume
    assert rows["encoding latents"].disk_bytes == 40_000 * 20 * 28 * 20 * 3 * 4 * 2
