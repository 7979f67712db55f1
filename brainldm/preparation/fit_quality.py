"""The template as a registration uses it, and how well a scan lies on it, in numbers that tell a wrong fit from a
small or old brain."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from brainldm.volumes.geometry import correlation, grow, otsu, pose_matrix, sample, to_world
from brainldm.volumes.nifti import Volume
from brainldm.volumes.template import Template, load_template

_MARGINS_MM = {True: 8, False: 6}
"""Around the template's brain (of stripped scans, of heads), so that a fit sees the brain's edge: background, or the
dark skull."""
_RIM_MM = 3
"""Under the surface of the brain, where what is compared is the surface more than the brain."""
_BAND_MM = (2.0, 10.0)
"""The details compared: Gaussian smoothing by the first less smoothing by the second. Gyri, ventricles and nuclei
remain; noise, and whatever a bias field or the mere shape of a brain explains, does not."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The template: (image, region) at 4 mm and at 2 mm for a fit, `search` and `region` points with their values,
    and which of the latter are `brain` and `tissue`; `mask`, what lies `deep` in it and its
    `details` on the 2 mm grid of `affine`."""

    levels: tuple[tuple[Volume, Volume], tuple[Volume, Volume]]
    centre: np.ndarray
    volume_ml: float
    search: tuple[np.ndarray, np.ndarray]
    region: tuple[np.ndarray, np.ndarray]
    brain: np.ndarray
    tissue: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    deep: np.ndarray
    details: np.ndarray
    voxel_ml: float


@functools.lru_cache(maxsize=2)
def template_reference(stripped: bool) -> Reference:
    """The template for stripped scans or for heads, made once per process."""
    margin = _MARGINS_MM[stripped]
    templates = _templates()
    regions = [grow(t.mask, margin / t.grid.spacing_mm[0]) for t in templates]
    levels = tuple(
        (Volume(t.t1, t.grid.affine), Volume(region.astype(np.uint8), t.grid.affine))
        for t, region in zip(templates, regions, strict=True)
    )
    coarse, fine = templates
    sparse = np.argwhere(regions[0])
    sparse = sparse[(sparse % 2 == 0).all(1)]
    dense = np.argwhere(regions[1])
    smooth = ndimage.gaussian_filter(coarse.t1, 1.0)
    deep = ndimage.distance_transform_edt(fine.mask) * fine.grid.spacing_mm[0] > _RIM_MM
    return Reference(
        levels=levels,
        centre=to_world(np.argwhere(fine.mask).mean(0), fine.grid.affine),
        volume_ml=fine.icv_ml,
        search=(to_world(sparse, coarse.grid.affine), smooth[tuple(sparse.T)].astype(np.float64)),
        region=(to_world(dense, fine.grid.affine), fine.t1[tuple(dense.T)].astype(np.float64)),
        brain=fine.mask[tuple(dense.T)],
        tissue=(fine.gm + fine.wm)[tuple(dense.T)] > 0.5,
        mask=fine.mask,
        affine=fine.grid.affine,
        deep=deep,
        details=_details(fine.t1, fine.mask, deep),
        voxel_ml=fine.grid.voxel_ml,
    )


@functools.lru_cache(maxsize=1)
def _templates() -> tuple[Template, Template]:
    return load_template(4), load_template(2)


def template_correlation(reference: Reference, moving: Volume, pose: np.ndarray) -> float:
    """Correlation with the template in and around its brain: what a fit from one start is compared by with others."""
    points, values = reference.region
    return correlation(values, sample(moving, points, pose_matrix(pose, reference.centre)))


def similarity(reference: Reference, moving: Volume, pose: np.ndarray) -> float:
    """Correlation of the details with those of the template, inside its brain.

    The mere shape of a brain gives nothing, so that a head, a stripped brain, an upside-down one and noise in the
    shape of a brain are told by one scale.
    """
    to_index = np.linalg.inv(moving.affine) @ pose_matrix(pose, reference.centre) @ reference.affine
    image = ndimage.affine_transform(
        moving.data, to_index[:3, :3], to_index[:3, 3], reference.mask.shape, order=1, output=np.float32
    )
    return round(correlation(reference.details, _details(image, reference.mask, reference.deep)), 6)


def _details(image: np.ndarray, mask: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """The band of `image` (2 mm voxels) at the voxels of `deep`, made of voxels of the mask alone."""
    weight = mask.astype(np.float32)
    narrow, wide = (
        ndimage.gaussian_filter(image.astype(np.float32) * weight, mm / 2)
        / np.maximum(ndimage.gaussian_filter(weight, mm / 2), 1e-3)
        for mm in _BAND_MM
    )
    return (narrow - wide)[deep].astype(np.float64)


def overlap(reference: Reference, moving: Volume, pose: np.ndarray, stripped: bool) -> float:
    """Dice with the template's brain; in a whole head, of what is bright near the brain with its tissue."""
    sampled = sample(moving, reference.region[0], pose_matrix(pose, reference.centre))
    if stripped:
        # What lies outside the region counts too, or any large thing would be a brain.
        whole = int((moving.data > 0.02).sum()) * abs(np.linalg.det(moving.affine[:3, :3])) / 1000 / pose[6] ** 3
        both = int(((sampled > 0.02) & reference.brain).sum()) * reference.voxel_ml
        return round(2 * both / (whole + reference.volume_ml), 6)
    tissue = sampled > otsu(sampled)
    both = int((tissue & reference.tissue).sum())
    return round(2 * both / max(int(tissue.sum()) + int(reference.tissue.sum()), 1), 6)


def coverage(reference: Reference, scan: Volume, pose: np.ndarray) -> float:
    """Share of the template's brain inside the field of view of `scan`."""
    points = reference.region[0][reference.brain]
    matrix = np.linalg.inv(scan.affine) @ pose_matrix(pose, reference.centre)
    index = points @ matrix[:3, :3].T + matrix[:3, 3]
    inside = ((index >= -0.5) & (index <= np.asarray(scan.data.shape) - 0.5)).all(1)
    return round(float(inside.mean()), 6)
