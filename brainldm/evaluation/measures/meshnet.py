"""Volumes by a MeshNet of 18 classes (Fedorov et al. 2017), with the weights that brainchop publishes.

Its images are conformed as FreeSurfer does: a cube of 256 voxels of 1 mm with axes to the left, down and to the front.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage

from brainldm.evaluation.measures.backend import (
    BRAIN,
    TISSUE,
    TOTALS,
    VENTRICLES,
    Backend,
    Image,
    Measured,
    column_of,
    normalised,
)
from brainldm.evaluation.measures.one_mm import labels_on_grid, resample_to_1mm
from brainldm.models.features.meshnet import MeshNet
from brainldm.runtime.errors import UserError
from brainldm.weights.tfjs_file import read_meshnet

STRUCTURES = (
    "cerebral white matter",
    "cerebral cortex",
    "lateral ventricles",
    "inferior lateral ventricles",
    "cerebellum white matter",
    "cerebellum cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
    "3rd ventricle",
    "4th ventricle",
    "brain stem",
    "hippocampus",
    "amygdala",
    "accumbens area",
    "ventral DC",
)
"""Classes 1 to 17, left and right together; 0 is the background."""
_VENTRICLES = ("lateral ventricles", "inferior lateral ventricles")
_WITHOUT_TISSUE = (*_VENTRICLES, "3rd ventricle", "4th ventricle")

_CONFORMED_VOXELS = 256**3
_BRIGHTEST = 0.02
_MARGIN_VOXELS = 8
_KEPT = 0.2
_SIDES = 32
_LEAST_ML = 100


def rescale(data: np.ndarray) -> np.ndarray:
    """`data` (background 0, 1 mm voxels) with the level that 2 % of a cube of 256 voxels pass brought to 1.

    What is brighter is clipped. The other bound, the level of the darkest 2 %, is the background's.
    """
    passing = min(int(_BRIGHTEST * _CONFORMED_VOXELS), data.size - 1)
    high = np.partition(data.ravel(), -passing)[-passing]
    return np.clip(data / high, 0, 1).astype(np.float32) if high > 0 else np.zeros(data.shape, np.float32)


def cut_to_brain(data: np.ndarray) -> tuple[np.ndarray, tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """What is not 0 with a margin, in a box whose sides divide by 32, so that most brains of a dataset share a program.

    Returns the box, zeros where it passes the edge of `data`, and the place of their common part in each.
    """
    found = ndimage.find_objects((data > 0).astype(np.int8))[0]
    sides = [-(-(part.stop - part.start + 2 * _MARGIN_VOXELS) // _SIDES) * _SIDES for part in found]
    low = [(part.start + part.stop - side) // 2 for part, side in zip(found, sides, strict=True)]
    there = tuple(slice(max(a, 0), min(a + n, side)) for a, n, side in zip(low, sides, data.shape, strict=True))
    here = tuple(slice(part.start - a, part.stop - a) for part, a in zip(there, low, strict=True))
    cut = np.zeros(sides, data.dtype)
    cut[here] = data[there]
    return cut, (here, there)


def paste(cut: np.ndarray, place: tuple[tuple[slice, ...], tuple[slice, ...]], data: np.ndarray) -> None:
    """Write what `cut_to_brain` took, or what was made of it, back to its place in `data`."""
    here, there = place
    data[there] = cut[here]


def to_conformed(data: np.ndarray) -> np.ndarray:
    """RAS [x, y, z, ...] -> axes to the left, down and to the front."""
    return data[::-1, :, ::-1].swapaxes(1, 2)


def from_conformed(data: np.ndarray) -> np.ndarray:
    """The inverse of `to_conformed`."""
    return data.swapaxes(1, 2)[::-1, :, ::-1]


def clean(posteriors: np.ndarray) -> np.ndarray:
    """Posteriors [D, H, W, classes] of which those of structures up to 0.2 count as 0, their sum 1 at each voxel.

    As in SynthSeg's fast mode. A hundredth at every voxel of a brain would be as large as its ventricles. The array
    given is changed.
    """
    posteriors[..., 1:] *= posteriors[..., 1:] > _KEPT
    total = posteriors.sum(axis=-1, keepdims=True)
    return np.divide(posteriors, total, out=posteriors, where=total > 0)


@functools.partial(jax.jit, static_argnums=0)
def predict(network: MeshNet, variables: dict, image: jax.Array) -> jax.Array:
    """Posteriors [D, H, W, classes] of an image [D, H, W]. Products of float32 are not shortened."""
    with jax.default_matmul_precision("highest"):
        scores = network.apply(variables, image[None, ..., None])[0]
    return jax.nn.softmax(scores)


class MeshNetSegmenter(Backend):
    """MeshNet with the weights of `path`, a TensorFlow.js model of the 18 classes of STRUCTURES and the background.

    Raises UserError for weights that cannot be read or have another number of classes.
    """

    name = "meshnet"
    structures = dict(enumerate(STRUCTURES, start=1))
    columns = {
        VENTRICLES: "lateral and inferior lateral ventricles, left and right",
        **TOTALS,
        **{column_of(name): name for name in STRUCTURES},
    }

    def __init__(self, path: str | Path):
        self._network, self._variables, self.sha256 = read_meshnet(path)
        classes = self._network.layers[-1].features
        if classes != len(STRUCTURES) + 1:
            raise UserError(
                f"{path}: a MeshNet of {classes} classes; one of {len(STRUCTURES) + 1} (brainchop's subcortical models "
                "of 18 classes) is wanted."
            )

    def __call__(self, image: Image, labels: bool = False) -> Measured:
        fine, spacing = resample_to_1mm(image.data, image.grid.spacing_mm)
        scaled = rescale(fine)
        if not scaled.any():
            return self.nothing("no brain found: nothing is brighter than the background")
        cut, place = cut_to_brain(scaled)
        posteriors = clean(from_conformed(np.array(predict(self._network, self._variables, to_conformed(cut)))))
        sums = posteriors.sum(axis=(0, 1, 2), dtype=np.float64)[1:] * float(np.prod(spacing)) / 1000
        if sums.sum() < _LEAST_ML:
            return self.nothing(f"no brain found: {sums.sum():.0f} mL of it")
        segmented = None
        if labels:
            chosen = np.zeros(fine.shape, np.int16)
            paste(posteriors.argmax(axis=-1), place, chosen)
            segmented = labels_on_grid(chosen, image.data.shape, image.grid.spacing_mm)
        return Measured(self._volumes(dict(zip(STRUCTURES, sums.tolist(), strict=True)), image.scale), segmented)

    def _volumes(self, found: Mapping[str, float], scale: float | None) -> dict[str, float]:
        tissue = sum(volume for name, volume in found.items() if name not in _WITHOUT_TISSUE)
        return {
            VENTRICLES: sum(found[name] for name in _VENTRICLES),
            BRAIN: normalised(tissue, scale),
            TISSUE: tissue,
            **{column_of(name): volume for name, volume in found.items()},
        }
