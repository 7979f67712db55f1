"""The template that nilearn carries, in the training box."""

import numpy as np
import pytest

from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.volumes.template import load_template


@pytest.fixture(scope="module")
def templates():
    return {spacing: load_template(spacing) for spacing in (1, 4)}


@pytest.mark.parametrize("spacing", [1, 4])
def test_arrays_lie_on_the_training_grid(templates, spacing):
    template = templates[spacing]
    for name in ("t1", "gm", "wm", "ventricles"):
        array = getattr(template, name)
        assert array.shape == training_grid(spacing).shape and array.dtype == np.float32, name
        assert array.min() >= 0 and array.max() <= 1, name
    assert template.mask.dtype == bool
    assert np.array_equal(template.grid.affine, training_grid(spacing).affine)


def test_coarser_grids_hold_block_averages(templates):
    fine, coarse = templates[1], templates[4]
    blocks = fine.t1.reshape(40, 4, 56, 4, 40, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(coarse.t1, blocks, atol=1e-5)
    assert coarse.icv_ml == fine.icv_ml
    volumes = [t.ventricles.sum(dtype=float) * t.grid.voxel_ml for t in (fine, coarse)]
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-4)


def test_volumes_of_the_template(templates):
    template = templates[1]
    # the whole template holds 1886.5 mL inside its mask: none of it falls outside the box
    assert template.icv_ml == pytest.approx(1886.5, abs=1.0)
    ventricles = template.ventricles.sum(dtype=float) / 1000
    assert 14 < ventricles < 21


def test_ventricles_are_both_sided_and_deep(templates):
    template = templates[1]
    left, right = template.ventricles[:80].sum(), template.ventricles[80:].sum()
    assert 0.8 < left / right < 1.25
    # in world mm, the bodies of both ventricles lie there and the third ventricle (midline, z 0) is left out
    points = np.array([(9, 4, 18), (-9, 4, 18), (0, -14, 0)]) - template.grid.affine[:3, 3]
    right, left, third = template.ventricles[tuple(points.astype(int).T)]
    assert right > 0.9 and left > 0.9 and third == 0


def test_intensities_order_the_tissues(templates):
    template = templates[1]
    parts = (template.wm > 0.95, template.gm > 0.9, template.ventricles > 0.95)
    white, grey, fluid = (template.t1[part].mean() for part in parts)
    assert white > grey + 0.15 and grey > fluid + 0.2


def test_unknown_spacing_is_the_users_mistake():
    with pytest.raises(UserError, match="3 mm"):
        load_template(3)
