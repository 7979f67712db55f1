"""The embedded population: reproducible, with the volumes it says, and with age in the picture."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from bids_validator import bids_errors

from brainldm.datasets.bids import read_dataset, read_participants
from brainldm.datasets.covariates import Covariates
from brainldm.population.anatomy import Anatomy
from brainldm.population.population import Population, population_of, write_population
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import SPACE
from brainldm.volumes.nifti import read_volume
from brainldm.volumes.template import COPYRIGHT_NOTICE


@pytest.fixture(scope="module")
def populations():
    return {2: Population(2), 4: population_of(4)}


@pytest.fixture(scope="module")
def at_4mm(populations):
    return populations[4]


def _digests(folder):
    paths = sorted(folder.rglob("*_T1w.nii.gz"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same population once with three people in this process, once with two in two processes."""
    root = tmp_path_factory.mktemp("population")
    seen = []
    write_population(root / "three", 3, 4, seed=11, progress=lambda done, total: seen.append((done, total)))
    write_population(root / "two", 2, 4, seed=11, workers=2)
    return root, seen


def test_the_official_validator_finds_no_error_in_it(written, tmp_path):
    assert bids_errors(written[0] / "three") == []
    assert any("MISSING_DATASET_DESCRIPTION" in error for error in bids_errors(tmp_path))


def test_bytes_depend_on_seed_and_index_alone(written):
    root, _ = written
    three, two = _digests(root / "three"), _digests(root / "two")
    assert len(three) == 3 and len(two) == 2
    assert len(set(three.values())) == 3
    assert {name: three[name] for name in two} == two


def test_written_dataset_is_bids_and_reads_back(written, at_4mm):
    root, seen = written
    assert seen == [(1, 3), (2, 3), (3, 3)]
    records = read_dataset(root / "three", Covariates())
    assert [record.participant_id for record in records] == ["sub-0001", "sub-0002", "sub-0003"]
    subject = at_4mm.make(11, 1)
    assert records[1].covariates == {name: subject.covariates[name] for name in Covariates().names}
    assert records[1].path.name == f"sub-0002_space-{SPACE}_T1w.nii.gz"
    volume = read_volume(records[1].path)
    np.testing.assert_allclose(volume.data, subject.image, atol=0.5 / 32767 + 1e-6)
    np.testing.assert_allclose(volume.affine, at_4mm.grid.affine)
    description = json.loads((root / "three" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["EmbeddedPopulation"] is True
    table = read_participants(root / "three")
    assert float(table.cells("head_ml")[1]) == subject.covariates["head_ml"] != subject.requested["head_ml"]
    readme = (root / "three" / "README").read_text()
    assert "not real people" in readme and COPYRIGHT_NOTICE in readme


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="already holds something"):
        write_population(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_counts_below_one_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="start at 1"):
        write_population(tmp_path / "out", 0)


@pytest.mark.parametrize("spacing", [2, 4])
def test_measured_volumes_agree_with_the_asked_ones(populations, spacing):
    population = populations[spacing]
    people = ((0, 8, 1600), (1, 20, 1250), (2, 45, 1500), (3, 90, 1450), (4, 160, 1350))
    for index, ventricles, brain in people:
        subject = population.make(2, index, ventricles_ml=ventricles, brain_ml=brain)
        voxel_ml = population.grid.voxel_ml
        assert subject.covariates["ventricles_ml"] == pytest.approx(ventricles, rel=0.05)
        assert subject.covariates["brain_ml"] == pytest.approx(brain, rel=0.05)
        assert subject.ventricles.sum(dtype=float) * voxel_ml == pytest.approx(
            subject.covariates["ventricles_ml"], abs=0.01
        )
        # normalised by the head of the image itself, whatever the head asked for
        head_ml = subject.covariates["head_ml"]
        assert subject.tissue.sum(dtype=float) * voxel_ml / head_ml * 1886.5 == pytest.approx(
            subject.covariates["brain_ml"], rel=1e-3
        )
        # counted on the image: half of a voxel of CSF or more; at 4 mm a rim of tissue passes with less
        shown_ml = (subject.image > 0.1).sum() * voxel_ml
        assert shown_ml == pytest.approx(head_ml, rel=0.01 if spacing == 2 else 0.03)
        assert (subject.ventricles + subject.tissue).max() <= 1 + 1e-5


def test_the_same_person_at_two_spacings(populations):
    fine, coarse = (populations[spacing].make(3, 5) for spacing in (2, 4))
    assert fine.requested == coarse.requested
    averaged = fine.image.reshape(40, 2, 56, 2, 40, 2).mean(axis=(1, 3, 5))
    inside = (averaged > 0) | (coarse.image > 0)
    # block averages of the 2 mm image and the image made at 4 mm differ by sampling and noise only
    assert np.corrcoef(averaged[inside], coarse.image[inside])[0, 1] > 0.97


def test_intensities(populations):
    for population in populations.values():
        subject = population.make(4, 0, age=63, ventricles_ml=60)
        image = subject.image
        assert image.dtype == np.float32 and image.shape == population.grid.shape
        assert image.min() == 0 and 0.8 < image.max() <= 1
        # skull-stripped: most of the box is exactly 0, and so are its sides, front, back and top
        assert 0.6 < (image == 0).mean() < 0.85
        faces = (image[0], image[-1], image[:, 0], image[:, -1], image[:, :, -1])
        assert not any(face.any() for face in faces)
        fluid = np.median(image[subject.ventricles > 0.99])
        bright = np.percentile(image[subject.tissue > 0.99], 90)
        assert 0.1 < fluid < 0.3 and 0.8 < bright < 0.98


def test_coarse_images_cost_less():
    """The work follows the sample points; smooth fields cost the same at every spacing."""
    assert Anatomy(4).point_ml == pytest.approx(8 * Anatomy(2).point_ml)


def test_conditions_are_plausible(at_4mm):
    people = [at_4mm.sample_conditions(0, index) for index in range(600)]
    names = ("age", "ventricles_ml", "brain_ml")
    age, ventricles, brain = (np.array([p[name] for p in people]) for name in names)
    male = np.array([p["sex"] == "M" for p in people])
    head = np.array([p["head_ml"] for p in people])
    for name, values in (("age", age), ("ventricles_ml", ventricles), ("brain_ml", brain)):
        covariate = Covariates()[name]
        assert covariate.low <= values.min() and values.max() <= covariate.high, name
    # bounds are four standard errors or more around the cohort's figures
    assert abs(age.mean() - 63.4) < 1.3 and 6.0 < age.std() < 8.2
    assert 0.38 < male.mean() < 0.56
    design = np.stack([np.ones(600), age - 63.6, male - 0.47], axis=1)
    fit = np.linalg.lstsq(design, np.log(ventricles), rcond=None)[0]
    assert (np.abs(fit - (3.05, 0.0281, 0.247)) < (0.08, 0.011, 0.16)).all()
    assert np.corrcoef(age, brain)[0, 1] < -0.25
    assert head[male].mean() > head[~male].mean() + 100


def test_overrides_leave_everything_else(at_4mm):
    drawn = at_4mm.sample_conditions(0, 3)
    asked = at_4mm.sample_conditions(0, 3, age=50)
    assert asked == {**drawn, "age": 50}
    # the one exception: the head is that of the asked sex
    women, men = ([at_4mm.sample_conditions(0, index, sex=sex) for index in range(20)] for sex in "FM")
    for woman, man in zip(women, men, strict=True):
        assert woman["age"] == man["age"] and woman["ventricles_ml"] == man["ventricles_ml"]
        assert man["head_ml"] > woman["head_ml"]
    one, two = at_4mm.make(0, 3), at_4mm.make(0, 3, ventricles_ml=drawn["ventricles_ml"] * 1.5)
    inside = (one.image > 0) & (two.image > 0)
    assert np.corrcoef(one.image[inside], two.image[inside])[0, 1] > 0.9


def test_impossible_brains_are_refused(at_4mm):
    with pytest.raises(UserError, match="at most"):
        at_4mm.sample_conditions(0, 0, ventricles_ml=170, brain_ml=1790)
    with pytest.raises(UserError, match="no condition"):
        at_4mm.sample_conditions(0, 0, height=180)
    with pytest.raises(UserError, match="F and M"):
        at_4mm.sample_conditions(0, 0, sex="female")


def test_age_shows_besides_the_volumes(at_4mm):
    fixed = {"ventricles_ml": 30, "brain_ml": 1450}
    falls = []
    for index in range(4):
        young, old = (at_4mm.make(6, index, age=age, **fixed) for age in (46, 80))
        assert young.covariates["ventricles_ml"] == pytest.approx(old.covariates["ventricles_ml"], rel=0.05)
        assert young.covariates["brain_ml"] == pytest.approx(old.covariates["brain_ml"], rel=0.01)
        # the same voxels in both images: chance is the same, so what is left is the age
        mean, tissue = (young.image + old.image) / 2, np.minimum(young.tissue, old.tissue)
        white, grey = (tissue > 0.98) & (mean > 0.8), (tissue > 0.98) & (mean > 0.5) & (mean < 0.65)
        contrasts = [1 - image[grey].mean() / image[white].mean() for image in (young.image, old.image)]
        falls.append(contrasts[0] - contrasts[1])
    # a difference of 34 years against a spread between people of about 0.015
    assert min(falls) > 0.06


def test_people_differ(at_4mm):
    images = [at_4mm.make(8, index, age=63, ventricles_ml=25, brain_ml=1480).image for index in range(5)]
    similar = []
    for first in range(5):
        for second in range(first):
            one, two = images[first], images[second]
            inside = (one > 0) & (two > 0)
            similar.append(np.corrcoef(one[inside], two[inside])[0, 1])
    # alike enough to be brains in one space, unlike enough to be different people
    assert 0.3 < np.mean(similar) < 0.8
    assert max(similar) < 0.9


def test_no_jax_in_the_workers(repository):
    code = "import sys, brainldm.population.population; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0
