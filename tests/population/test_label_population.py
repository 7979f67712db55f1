"""People made from label maps: one anatomy or two, volumes as written, labels that fit the image, bad maps refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from brainldm.cli import main
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.covariates import Covariates
from brainldm.population import label_table as table
from brainldm.population.label_maps import LabelMap, find_label_maps
from brainldm.population.label_population import LabelPopulation, draw_maps, prepare, write_label_population
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.nifti import read_volume
from brainldm.volumes.template import load_template

LATERAL = (4, 5, 43, 44)


def _write(path, labels, affine, coded=True):
    image = nib.Nifti1Image(labels.astype(np.int16), affine)
    image.set_sform(affine, code=int(coded))
    image.set_qform(affine, code=int(coded))
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def template_labels():
    """The template at 2 mm as a label map with FreeSurfer's numbers, and its affine."""
    template = load_template(2)
    left = (np.arange(template.grid.shape[0]) * 2 - 79.5 < 0)[:, None, None]
    side = np.where(left, table.LEFT_WHITE, table.RIGHT_WHITE)
    parts = [~template.mask, template.mask * 0.3, template.ventricles, template.wm, template.gm]
    labels = np.choose(np.argmax(parts, axis=0), [0, table.CSF, side + 2, side, side + 1])
    return labels, template.grid.affine


@pytest.fixture(scope="module")
def written(tmp_path_factory, template_labels):
    """Two people of two maps that lie in the space of the template."""
    root = tmp_path_factory.mktemp("labels")
    labels, affine = template_labels
    _write(root / "maps" / "a.nii.gz", labels, affine)
    _write(root / "maps" / "b.nii.gz", np.where(labels == 43, 44, labels), affine)
    seen = []
    write_label_population(
        root / "out", root / "maps", 2, 4, seed=3, registered=True, progress=lambda *done: seen.append(done)
    )
    return root, seen


def test_it_is_a_dataset_with_a_label_map_beside_each_image(written):
    root, seen = written
    scans = read_dataset(root / "out", Covariates())
    assert [scan.participant_id for scan in scans] == ["sub-0001", "sub-0002"]
    assert seen[-1] == ("population", 2, 2) and seen[0][0] == "label maps"
    names = [line.split("\t")[0] for line in (root / "out" / "desc-population_dseg.tsv").read_text().splitlines()[1:]]
    description = json.loads((root / "out" / "dataset_description.json").read_text())
    assert description["LabelMaps"] == ["a.nii.gz", "b.nii.gz"] and "EmbeddedPopulation" not in description
    for scan in scans:
        image = read_volume(scan.path)
        stem = scan.path.name.removesuffix("_T1w.nii.gz")
        labels = np.rint(read_volume(scan.path.with_name(f"{stem}_desc-population_dseg.nii.gz")).data).astype(int)
        assert labels.shape == image.data.shape == training_grid(4).shape
        assert set(map(str, np.unique(labels))) <= set(names)
        voxel_ml = training_grid(4).voxel_ml
        counted = np.isin(labels, LATERAL).sum() * voxel_ml
        assert counted == pytest.approx(scan.covariates["ventricles_ml"], rel=0.25)  # whole voxels of 4 mm
        fluid, cortex, white = (
            np.median(image.data[np.isin(labels, group)]) for group in ((24, *LATERAL), (3, 42), (2, 41))
        )
        assert fluid < 0.35 < 0.5 < cortex < 0.68 < 0.75 < white
        assert not image.data[labels == 0].max() > 0.3


def test_a_person_depends_on_seed_index_and_maps_alone(written, template_labels, tmp_path):
    root, _ = written
    maps = find_label_maps(root / "maps")
    prepare(maps, tmp_path, [(3, 1)], registered=True)
    again = LabelPopulation(tmp_path, 4).make(3, 1)
    path = root / "out" / "sub-0002" / "anat" / "sub-0002_space-MNI152NLin2009aSym_T1w.nii.gz"
    np.testing.assert_allclose(read_volume(path).data, again.image, atol=0.5 / 32767 + 1e-6)
    wide = LabelPopulation(tmp_path, 4).make(3, 1, ventricles_ml=90)
    assert wide.covariates["ventricles_ml"] == pytest.approx(90, rel=0.1)
    assert again.requested == {**wide.requested, "ventricles_ml": again.requested["ventricles_ml"]}


def test_maps_near_to_what_is_asked_are_drawn_more_often():
    shares = [(0.01, None), (0.05, None), (0.01, None)]
    person = {"ventricles_ml": 75.0, "head_ml": 1500.0, "brain_ml": 1500.0}
    drawn = [draw_maps(np.random.default_rng(seed), shares, person, 1500.0) for seed in range(200)]
    assert np.mean([maps[0] == 1 for maps in drawn]) > 0.9
    assert 0.6 < np.mean([len(maps) == 2 for maps in drawn]) < 0.9
    assert all(len(set(maps)) == len(maps) for maps in drawn)


def _without_ventricles(labels):
    return np.where(np.isin(labels, LATERAL), 24, labels)


def _with_unknown(labels):
    return np.where(labels == 3, 777, labels)


def _half(labels):
    return np.where(labels == 3, 0, np.where(labels == 42, 0, labels))


@pytest.mark.parametrize(
    ("change", "coded", "said"),
    [
        (_without_ventricles, True, "0.0 mL of lateral ventricles"),
        (_with_unknown, True, "such as 777"),
        (_half, True, "whole brains with cortex"),
        (np.asarray, False, "neither sform nor qform"),
    ],
    ids=["no ventricles", "unknown labels", "no cortex", "no affine"],
)
def test_a_map_that_cannot_be_used_is_refused_before_any_work(change, coded, said, template_labels, tmp_path, capsys):
    labels, affine = template_labels
    path = _write(tmp_path / "maps" / "bad.nii.gz", change(labels), affine, coded)
    out = tmp_path / "out"
    assert main(["population", str(out), "--labels", str(path.parent), "--n", "1", "--workers", "1"]) == 2
    message = capsys.readouterr().err
    assert said in message and "bad.nii.gz" in message and not out.exists()


def test_a_folder_without_maps_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="no label maps"):
        find_label_maps(tmp_path)
    assert main(["population", str(tmp_path / "out"), "--registered"]) == 2
    assert "--labels DIR" in capsys.readouterr().err


def test_a_map_upside_down_does_not_fit_the_template(template_labels, tmp_path):
    labels, affine = template_labels
    path = _write(tmp_path / "maps" / "turned.nii.gz", labels[:, :, ::-1], affine)
    with pytest.raises(UserError, match=r"turned.nii.gz: the map does not fit"):
        prepare([LabelMap(path, 0.02, None)], tmp_path, [(0, 0)], registered=True)


@pytest.mark.slow
def test_real_label_maps_give_the_contrast_of_real_scans(shared, tmp_path):
    (tmp_path / "maps").mkdir()
    for number in (3, 4):
        shutil.copy(shared / "data" / "synthseg_label_maps" / f"training_seg_{number:02d}.nii.gz", tmp_path / "maps")
    maps = find_label_maps(tmp_path / "maps")
    prepare(maps, tmp_path, [(0, 0)])
    person = LabelPopulation(tmp_path, 2).make(0, 0, age=60)
    # medians of real scans that are scaled alike, by their manual labels
    real = {2: 0.87, 3: 0.56, 10: 0.75, 11: 0.64, 12: 0.72, 13: 0.85, 16: 0.79, 17: 0.57, 8: 0.59, 7: 0.86}
    found = {number: float(np.median(person.image[person.labels == number])) for number in real}
    assert found == pytest.approx(real, abs=0.09)
    counts = {number: int((person.labels == number).sum()) for number in table.NAMES}
    assert counts[3] == pytest.approx(counts[42], rel=0.15) and counts[10] == pytest.approx(counts[49], rel=0.3)
