"""From the template to one person: shape, ventricles, sulci. Everything geometric, nothing of intensities.

An image voxel is the mean of sample points inside it (four, at the corners of a tetrahedron; one at 1 mm),
and every step works on the list of points: partial volumes then come out as in a scan of that resolution,
and the cost follows the number of voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from brainldm.population.deformation import NODE_MM, random_field, sample, ventricular_flow
from brainldm.volumes.grids import BOX_MM, ORIGIN_1MM, training_grid
from brainldm.volumes.nifti import block_average
from brainldm.volumes.template import Template, load_template

_TETRAHEDRON = np.array([[-1, -1, -1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 4.0
NODES = tuple(side // NODE_MM + 1 for side in BOX_MM)
_CORNER_MM = np.asarray(ORIGIN_1MM, np.float32) - 0.5

PATTERN_SD = 0.13
"""How far the local tissue threshold strays: some sulci of a person are wide, others tight."""
AGE_PATTERN = 0.10
"""Rise of the threshold per 10 years where ageing shows most."""
_AGEING_SPOTS_MM = (
    ((38, 40, 25), 26),
    ((0, 35, 45), 22),
    ((50, 0, 2), 20),
    ((30, -55, 50), 24),
    ((28, -15, -22), 14),
)
"""Frontal, medial frontal, perisylvian, parietal and medial temporal: centre (right side) and radius."""
_SLOPE = 0.09


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """The chance part of one person's anatomy.

    `blocks` [B] are the 4 mm blocks that may hold head; `points_mm` [3, N] are the template points, before
    the ventricular flow, of their sample points; `sulci` and `white` [N] shift the thresholds of tissue and
    of white matter; `curves` [2, T] are the ventricular volumes over flow time; `asymmetry` tells left from
    right.
    """

    blocks: np.ndarray
    points_mm: np.ndarray
    sulci: np.ndarray
    white: np.ndarray
    curves: np.ndarray
    asymmetry: float


@dataclasses.dataclass(frozen=True, eq=False)
class Tissues:
    """One person's anatomy at the sample points [N]: parts in 0..1, and `blocks` to lay them out.

    `tissue` is grey and white matter, `white` the white part of it, `head` everything inside the skull,
    `residual` the template's own intensity around its tissue means, `rim` white matter by the ventricles.
    `ventricles_ml` and `head_ml` are the volumes that `ventricles` and `head` sum to. `template_mm` [3, N] is where
    in the template (world) the points come from.
    """

    blocks: np.ndarray
    tissue: np.ndarray
    white: np.ndarray
    ventricles: np.ndarray
    head: np.ndarray
    residual: np.ndarray
    rim: np.ndarray
    template_mm: np.ndarray
    ventricles_ml: float
    head_ml: float


class Anatomy:
    """The template prepared for one spacing (1, 2 or 4 mm): channels, ventricular flow, layout of the points.

    `template` is another anatomy at 1 mm in place of the MNI template, and `reference_icv_ml` the head that brain
    volumes are normalised to, the MNI template's.
    `grid` is that of the images; `icv_ml` and `centre_mm` (world) are the size and centre of the template's
    head; `point_ml` is what one sample point stands for; on the nodes of smooth fields, `age_pattern`
    [1, *NODES] says where sulci widen with age and `freedom` [*NODES] how freely anatomy moves there.
    Raises UserError for a spacing that does not exist.
    """

    def __init__(self, spacing_mm: float, template: Template | None = None, reference_icv_ml: float | None = None):
        self.grid = training_grid(spacing_mm)
        spacing = int(self.grid.spacing_mm[0])
        template = template or load_template(1)
        self.icv_ml = template.icv_ml
        self.reference_icv_ml = reference_icv_ml or template.icv_ml
        self.centre_mm = np.argwhere(template.mask).mean(axis=0).astype(np.float32) + np.float32(ORIGIN_1MM)
        self.flow = ventricular_flow(template)
        factor = max(1, spacing // 2)
        maps = [block_average(part, factor) for part in _channels(template)]
        self._shape = maps[0].shape
        self._channels = np.stack([part.reshape(-1) for part in maps], axis=1)
        self._template_grid = training_grid(factor)
        head = template.mask.astype(np.float32)
        self._near = ndimage.binary_dilation(block_average(head, NODE_MM) > 0)
        self.age_pattern = _ageing_pattern()
        # skulls are smooth: folds move freely inside and hardly at the surface
        depth = ndimage.distance_transform_edt(block_average(head, 2) > 0.5)[::2, ::2, ::2]
        freedom = 0.25 + 0.75 * np.clip((2 * depth - 2) / 14, 0, 1).astype(np.float32)
        self.freedom = np.pad(freedom, ((0, 1),) * 3, mode="edge")
        self._per_block = NODE_MM // spacing
        self._corner_weights = _corner_weights(spacing)
        self.point_ml = self.grid.voxel_ml * self._per_block**3 / self._corner_weights.shape[0]

    def near_head(self, nodes_mm: np.ndarray) -> np.ndarray:
        """Which template points [3, *NODES] (world mm) lie in the head or within some 4 mm of it."""
        index = np.floor((nodes_mm - _CORNER_MM[:, None, None, None]) / NODE_MM)
        last = np.asarray(self._near.shape)[:, None, None, None] - 1
        return self._near[tuple(np.clip(index, 0, last).astype(np.intp))]

    def head_blocks(self, nodes_mm: np.ndarray) -> np.ndarray:
        """Flat indices of the 4 mm blocks that may hold head, going by their centres."""
        return np.flatnonzero(self.near_head(nodes_mm[:, :-1, :-1, :-1] + NODE_MM / 2))

    def at_points(self, nodes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Node fields [F, *NODES] at the sample points of `blocks`, [F, N] (trilinear)."""
        i, j, k = np.unravel_index(blocks, [n - 1 for n in NODES])
        corners = np.stack([nodes[:, i + (c >> 2 & 1), j + (c >> 1 & 1), k + (c & 1)] for c in range(8)], axis=1)
        # no BLAS: its sums depend on the number of threads, and the files should not
        return np.einsum("pc,fcb->fpb", self._corner_weights, corners).reshape(len(nodes), -1)

    def to_grid(self, values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Sample points [N] averaged into an image [D, H, W], 0 outside the blocks."""
        r = self._per_block
        return self._laid_out(values.reshape(r**3, -1, len(blocks)).mean(axis=1, dtype=np.float32), blocks)

    def _laid_out(self, values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Voxels [V, B] of the blocks as an image [D, H, W]."""
        r = self._per_block
        count = [n - 1 for n in NODES]
        image = np.zeros((r**3, int(np.prod(count))), values.dtype)
        image[:, blocks] = values
        return np.ascontiguousarray(image.reshape(r, r, r, *count).transpose(3, 0, 4, 1, 5, 2).reshape(self.grid.shape))

    def most_common(self, labels: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Labels at the sample points [N] as a label map [D, H, W] of the most common one in each voxel, 0 outside."""
        r = self._per_block
        points = labels.reshape(r**3, -1, len(blocks))
        agreeing = (points[:, :, None] == points[:, None]).sum(axis=2).argmax(axis=1)
        chosen = np.take_along_axis(points, agreeing[:, None], axis=1)[:, 0]
        return self._laid_out(chosen, blocks)

    def deform(self, shape: Shape, ventricles_ml: float, brain_ml: float) -> Tissues:
        """The tissues of a person with these volumes.

        `brain_ml` is normalised for head size: the tissue's share of the deformed head times `reference_icv_ml`.
        """
        time = self.flow.solve_time(shape.curves, shape.asymmetry, ventricles_ml)
        template_mm = self.flow.map_points(shape.points_mm, time, shape.asymmetry)
        first = self._template_grid.affine[:3, 3].astype(np.float32)[:, None]
        points = (template_mm - first) / np.float32(self._template_grid.spacing_mm[0])
        tissue, white, ventricles, head, residual, rim = sample(self._channels, self._shape, points).T
        head = np.clip((head - 0.3) / 0.4, 0, 1)
        room = head * (1 - ventricles)
        # the shift acts on partial probabilities only: deep tissue stays tissue
        shifted = tissue + 4 * tissue * (1 - tissue) * shape.sulci
        # of the head as it came out: the random fields move its volume some per cent off the asked one
        wanted = brain_ml / self.reference_icv_ml * head.sum(dtype=np.float64)
        threshold = _threshold_for(shifted, room, wanted)
        white_threshold = 0.44 + 0.18 * (threshold - 0.6)
        shifted_white = white + 4 * white * (1 - white) * shape.white
        return Tissues(
            blocks=shape.blocks,
            tissue=_steepened(shifted, threshold) * room,
            white=_steepened(shifted_white, white_threshold),
            ventricles=ventricles * head,
            head=head,
            residual=residual,
            rim=rim,
            template_mm=template_mm,
            ventricles_ml=float((ventricles * head).sum(dtype=np.float64)) * self.point_ml,
            head_ml=float(head.sum(dtype=np.float64)) * self.point_ml,
        )


def sample_shape(rng: np.random.Generator, anatomy: Anatomy, person: Mapping[str, Any]) -> Shape:
    """Draw the head's size, proportions, pose and folding of one `person` (age and head_ml are used)."""
    scale = (person["head_ml"] / anatomy.icv_ml) ** (1 / 3)
    proportion = np.exp(rng.normal(0, (0.03, 0.03, 0.02)))
    proportion /= np.prod(proportion) ** (1 / 3)
    turn = np.deg2rad(rng.normal(0, (1.5, 1.0, 1.0)))
    shift = rng.normal(0, 1.2, 3)
    asymmetry = float(np.clip(rng.normal(0, 0.10), -0.25, 0.25))
    centre = anatomy.centre_mm[:, None]
    backward = (np.diag(1 / (scale * proportion)) @ _rotation(turn)).astype(np.float32)
    nodes = _node_positions().reshape(3, -1) - (centre + shift[:, None]).astype(np.float32)
    nodes = (np.einsum("ij,jn->in", backward, nodes) + centre).reshape(3, *NODES)
    # finer fields first, at the nodes themselves; the coarse one is read where they lead (maps composed)
    folding = 1.1 * random_field(rng, NODES, 3.5 / NODE_MM, 3)
    folding += 2.0 * random_field(rng, NODES, 7.0 / NODE_MM, 3)
    nodes += folding * anatomy.freedom
    coarse_nodes = tuple(side // (2 * NODE_MM) + 1 for side in BOX_MM)
    coarse = 2.9 * random_field(rng, coarse_nodes, 20.0 / (2 * NODE_MM), 3)
    where = (nodes.reshape(3, -1) - _CORNER_MM[:, None]) / (2 * NODE_MM)
    nodes += sample(coarse.reshape(3, -1).T, coarse_nodes, where).T.reshape(3, *NODES)
    nodes -= np.einsum("ij,j->i", backward, _shift_into_box(anatomy.near_head(nodes)))[:, None, None, None]
    nodes = nodes.astype(np.float32)
    years = (person["age"] - 63.0) / 10
    pattern = 0.75 * random_field(rng, NODES, 5.0 / NODE_MM) + 0.66 * random_field(rng, NODES, 2.0)
    sulci = PATTERN_SD * pattern - AGE_PATTERN * years * anatomy.age_pattern
    white = 0.10 * random_field(rng, NODES, 4.0 / NODE_MM) + rng.normal(0, 0.02)
    blocks = anatomy.head_blocks(nodes)
    fields = anatomy.at_points(np.concatenate([nodes, sulci, white]).astype(np.float32), blocks)
    curves = anatomy.flow.volume_curves(fields[:3], anatomy.point_ml)
    return Shape(blocks, fields[:3], fields[3], fields[4], curves, asymmetry)


def _shift_into_box(near: np.ndarray) -> np.ndarray:
    """How far (mm, [3]) an image whose head covers the nodes `near` is moved so that the box does not cut it.

    Nothing where a node is free on either side. A head that is too long for the box is centred, but along z
    the vertex is kept and the brainstem ends at the box, as in a scan with a tight field of view.
    """
    shift = np.zeros(3)
    for axis in range(3):
        covered = np.flatnonzero(near.any(axis=tuple(other for other in range(3) if other != axis)))
        below, above = int(covered[0]), near.shape[axis] - 1 - int(covered[-1])
        if below + above < 2:
            moved = above - 1 if axis == 2 else (above - below) / 2
        else:
            moved = max(1 - below, 0) - max(1 - above, 0)
        shift[axis] = NODE_MM * moved
    return shift


def _channels(template: Template) -> list[np.ndarray]:
    """What is read from the template: tissue, white matter, ventricles, head, residual intensity, rim."""
    mask = template.mask.astype(np.float32)
    tissue = np.clip(template.gm + template.wm, 0, 1)
    near = ndimage.binary_dilation(template.ventricles > 0, iterations=1)
    # fill the ventricles with the tissue around them: their wall is then set by the ventricle label alone
    blurred = [ndimage.gaussian_filter(part, 2.0) for part in (template.wm, tissue)]
    share = blurred[0] / np.maximum(blurred[1], 1e-3)
    hollow = near & (tissue < 0.9)
    # the probability reaches 1 within the cortex; some blurring lets atrophy thin it further
    filled = np.where(near, 1, tissue)
    filled = np.where(near, 1, 0.65 * filled + 0.35 * ndimage.gaussian_filter(filled, 2.0)) * mask
    white = np.where(hollow, share, template.wm).astype(np.float32)
    inside = template.mask & ~near
    design = np.stack([1 - tissue[inside], template.gm[inside], template.wm[inside]], axis=1)
    means = np.linalg.lstsq(design[::11], template.t1[inside][::11], rcond=None)[0]
    expected = means[0] * (1 - tissue) + means[1] * template.gm + means[2] * template.wm
    residual = np.where(inside, template.t1 - expected, 0).astype(np.float32)
    rim = np.clip(2.5 * ndimage.gaussian_filter(template.ventricles, 3.5), 0, 1) * white
    return [filled.astype(np.float32), white, template.ventricles, mask, residual, rim.astype(np.float32)]


def _node_positions() -> np.ndarray:
    """World positions (mm) of the nodes of smooth fields, [3, *NODES]; they are corners of 4 mm blocks."""
    return np.indices(NODES, np.float32) * NODE_MM + _CORNER_MM[:, None, None, None]


def _ageing_pattern() -> np.ndarray:
    """Where sulci widen most with age: [1, *NODES], 0..1 less some 0.4, in template space."""
    x, y, z = _node_positions()
    pattern = np.zeros(NODES, np.float32)
    for (right, front, up), radius in _AGEING_SPOTS_MM:
        squared = np.square(np.abs(x) - right) + np.square(y - front) + np.square(z - up)
        pattern = np.maximum(pattern, np.exp(-squared / (2 * radius**2)))
    return pattern[None] - 0.4


def _corner_weights(spacing: int) -> np.ndarray:
    """Trilinear weights [V*K, 8] of a block's sample points: V voxels (C order), K points in each."""
    count = NODE_MM // spacing
    offsets = _TETRAHEDRON if spacing > 1 else np.zeros((1, 3))
    voxels = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij")).reshape(3, -1).T
    positions = (voxels[:, None] + 0.5 + offsets[None]).reshape(-1, 3) / count
    weights = np.ones((len(positions), 8))
    for corner in range(8):
        for axis in range(3):
            part = positions[:, axis]
            weights[:, corner] *= part if corner >> (2 - axis) & 1 else 1 - part
    return weights.astype(np.float32)


def _rotation(angles: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cosine[0], -sine[0]], [0, sine[0], cosine[0]]])
    about_y = np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]])
    about_z = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _steepened(probability: np.ndarray, threshold: float) -> np.ndarray:
    """A logistic step at `threshold`, scaled so that 0 stays 0 and 1 stays 1."""
    step = 1 / (1 + np.exp((threshold - probability) / np.float32(_SLOPE)))
    low, high = (1 / (1 + np.exp((threshold - end) / _SLOPE)) for end in (0.0, 1.0))
    return np.clip((step - np.float32(low)) / np.float32(high - low), 0, 1)


def _threshold_for(probability: np.ndarray, room: np.ndarray, wanted: float) -> float:
    """The threshold at which the steepened probability times `room` sums to `wanted` (by bisection)."""
    counts, edges = np.histogram(probability, 1024, (-0.5, 1.5), weights=room)
    centres = (edges[1:] + edges[:-1]) / 2
    low, high = -1.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if (counts * _steepened(centres, middle)).sum() > wanted else (low, middle)
    return (low + high) / 2
