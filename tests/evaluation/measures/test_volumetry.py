"""Volumes measured on images whose volumes are known: the embedded population and real scans."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from brainldm.evaluation.measures.volumetry import measure, measure_with_labels
from brainldm.population.population import Population
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import Grid, training_grid
from brainldm.volumes.nifti import block_average, read_volume


@pytest.fixture(scope="module")
def people():
    """24 people of a seed that the calibration has not seen, ventricles 7 to 165 mL, and how they measure."""
    population = Population(4)
    made = [population.make(7, i, ventricles_ml=float(v)) for i, v in enumerate(np.geomspace(7.5, 165, 24))]
    return population.grid, made, [measure(person.image, population.grid) for person in made]


_MEASURED = ("ventricles_ml", "brain_ml", "head_scale")


@pytest.fixture(scope="module")
def real_scans(shared):
    """The real scans averaged to 2 mm with the rows of their table, and one of them at 1 mm."""
    root = shared / "data" / "oasis_mni_1mm"
    with open(root / "participants.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    paths = [next((root / row["participant_id"] / row["session_id"] / "anat").glob("*_T1w.nii.gz")) for row in rows]
    first = read_volume(paths[0]).data / 255
    coarse = [block_average(read_volume(path).data / 255, 2) for path in paths]
    return first, coarse, {name: np.array([float(row[name]) for row in rows]) for name in _MEASURED}


def test_ventricles_of_the_population(people):
    _, made, found = people
    label = np.array([person.covariates["ventricles_ml"] for person in made])
    measured = np.array([m.ventricles_ml for m in found])
    assert np.corrcoef(label, measured)[0, 1] >= 0.98
    assert 0.9 <= np.polyfit(label, measured, 1)[0] <= 1.1
    assert np.abs(measured - label).mean() < 3.5
    # the corridor does not saturate
    assert measured[-1] > 140


def test_brain_of_the_population(people):
    grid, made, found = people
    measured = np.array([m.brain_ml for m in found])
    tissue = np.array([person.tissue.sum() / (person.image > 0).sum() for person in made])
    assert np.corrcoef(tissue, measured)[0, 1] >= 0.9
    label = np.array([person.covariates["brain_ml"] for person in made])
    assert np.corrcoef(label, measured)[0, 1] >= 0.9
    assert np.abs(measured - label).mean() < 50
    heads = np.array([person.covariates["head_ml"] for person in made])
    assert np.corrcoef(heads, [m.icv_ml for m in found])[0, 1] >= 0.99


def test_real_scans(real_scans):
    """Ventricles without an offset; the volume of tissue as imaged, and normalised by the registration's scale (the
    table has its inverse)."""
    _, coarse, label = real_scans
    tissue, size = label["brain_ml"], label["head_scale"]
    for factor, least in ((1, 0.97), (2, 0.95)):
        grid = training_grid(2 * factor)
        images = [block_average(image, factor) for image in coarse]
        found = [measure(image, grid, True, 1 / s) for image, s in zip(images, size, strict=True)]
        ventricles = np.array([m.ventricles_ml for m in found])
        assert np.corrcoef(label["ventricles_ml"], ventricles)[0, 1] >= least
        assert 0.9 <= np.polyfit(label["ventricles_ml"], ventricles, 1)[0] <= 1.15
        assert abs((ventricles - label["ventricles_ml"]).mean()) < 0.2
        assert np.abs(ventricles - label["ventricles_ml"]).mean() < 1.5
        as_imaged = np.array([m.tissue_ml for m in found])
        assert np.corrcoef(tissue, as_imaged)[0, 1] >= 0.99
        assert np.abs(as_imaged - tissue).mean() < 20
        normalised = np.array([m.brain_ml for m in found])
        assert np.corrcoef(tissue * size**3, normalised)[0, 1] >= 0.85
        assert np.abs(normalised - tissue * size**3).mean() < 30


def test_brain_of_people_needs_the_size_of_the_head(people):
    """And the embedded population, whose heads are known, has no volume of tissue as imaged."""
    grid, made, found = people
    of_people = measure(made[3].image, grid, people=True)
    assert np.isnan(of_people.brain_ml) and of_people.tissue_ml > 500
    assert np.isnan(found[3].tissue_ml) and found[3].brain_ml > 500
    assert of_people.ventricles_ml - found[3].ventricles_ml == pytest.approx(4.66)


def test_labels_are_the_ventricles(people):
    """At 4 mm the wall is half of the voxels, so a mask of them is smaller than the volume where that is small."""
    grid, made, found = people
    for person, measurement in list(zip(made, found, strict=True))[12::4]:
        again, mask = measure_with_labels(person.image, grid)
        assert again == dataclasses.replace(measurement, tissue_ml=again.tissue_ml)
        assert mask.sum() * grid.voxel_ml == pytest.approx(measurement.ventricles_ml, rel=0.25)
        truth = person.ventricles > 0.5
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8


def test_labels_of_an_odd_1_mm_image_lie_on_its_voxels(real_scans):
    fine, *_ = real_scans
    odd = fine[:-1, 1:, :-1]
    found, mask = measure_with_labels(odd, Grid(odd.shape, np.eye(4)), people=True)
    assert mask.shape == odd.shape and mask.sum() / 1000 == pytest.approx(found.ventricles_ml, rel=0.5)


def test_one_millimetre_is_measured_at_two(real_scans):
    fine, coarse, _ = real_scans
    found, expected = measure(fine[..., None], training_grid(1)), measure(coarse[0], training_grid(2))
    assert found.ventricles_ml == pytest.approx(expected.ventricles_ml, rel=1e-6)
    assert found.brain_ml == pytest.approx(expected.brain_ml, rel=1e-6)


def test_blur_and_noise_change_little(people, real_scans):
    rng = np.random.default_rng(0)

    def spoilt(image):
        noise = rng.normal(0, 0.02, image.shape).astype(np.float32)
        return np.clip(ndimage.gaussian_filter(image, 0.5) + noise, 0, 1)

    grid, made, found = people
    for person, before in zip(made, found, strict=True):
        after = measure(spoilt(person.image), grid)
        assert abs(after.brain_ml / before.brain_ml - 1) < 0.1
        lost = abs(after.ventricles_ml - before.ventricles_ml)
        assert lost < max(0.1 * before.ventricles_ml, 6)
    _, coarse, label = real_scans
    for image in [coarse[i] for i in np.argsort(label["ventricles_ml"])[-3:]]:
        before, after = (measure(i, training_grid(2)).ventricles_ml for i in (image, spoilt(image)))
        assert abs(after / before - 1) < 0.1


def test_images_without_a_brain_give_a_reason():
    grid = training_grid(4)
    speck = np.zeros(grid.shape, np.float32)
    speck[20, 20, 20] = 1
    holey = np.full(grid.shape, np.nan, np.float32)
    noise = np.random.default_rng(0).random(grid.shape, np.float32)
    for image in (np.zeros(grid.shape), np.ones(grid.shape), -np.ones(grid.shape), speck, holey, noise):
        found = measure(image, grid)
        assert found.reason and np.isnan([found.ventricles_ml, found.brain_ml, found.icv_ml]).all()


def test_a_ball_is_measured_without_an_error():
    grid = training_grid(4)
    z = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in grid.shape], indexing="ij"))
    found = measure((np.sum(z**2, 0) < 17**2).astype(np.float32), grid)
    assert not found.reason and found.ventricles_ml == 0


def test_wrong_grids_are_refused():
    with pytest.raises(UserError, match="calibrated for 1, 2 and 4 mm"):
        measure(np.zeros((10, 10, 10)), Grid((10, 10, 10), np.diag([3.0, 3, 3, 1])))
    with pytest.raises(ValueError, match="does not lie"):
        measure(np.zeros((10, 10, 10)), training_grid(4))
