"""Volumes by SynthSeg (Billot et al. 2023, Medical Image Analysis 86:102789), with its authors' weights.

The steps before and after the network are those of the authors' `predict_synthseg.py` without its robust mode, so that
the volumes are those that their program gives: soft, from posteriors averaged over the image and its mirror image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from brainldm.evaluation.measures.backend import (
    BRAIN,
    ICV,
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
from brainldm.models.features.synthseg import SynthSegUNet, load_synthseg
from brainldm.runtime.errors import UserError
from brainldm.runtime.files import file_sha256
from brainldm.weights.keras_file import read_keras_h5
from brainldm.weights.torch_file import read_torch_state_dict

SIDED = {
    (2, 41): "cerebral white matter",
    (3, 42): "cerebral cortex",
    (4, 43): "lateral ventricle",
    (5, 44): "inferior lateral ventricle",
    (7, 46): "cerebellum white matter",
    (8, 47): "cerebellum cortex",
    (10, 49): "thalamus",
    (11, 50): "caudate",
    (12, 51): "putamen",
    (13, 52): "pallidum",
    (17, 53): "hippocampus",
    (18, 54): "amygdala",
    (26, 58): "accumbens area",
    (28, 60): "ventral DC",
}
"""FreeSurfer's labels of the left and the right structure."""
MIDDLE = {14: "3rd ventricle", 15: "4th ventricle", 16: "brain stem"}
CSF = 24
NAMES = (
    {0: "background", CSF: "CSF"}
    | MIDDLE
    | {
        label: f"{side} {name}"
        for pair, name in SIDED.items()
        for label, side in zip(pair, ("left", "right"), strict=True)
    }
)
LABELS_2 = tuple(sorted(NAMES))
LABELS_1 = tuple(label for label in LABELS_2 if label != CSF)
VENTRICLE_LABELS = (4, 5, 43, 44)
"""Lateral and inferior lateral ventricles, as in Pinaya et al. 2022."""
_WITHOUT_TISSUE = (0, CSF, 14, 15, *VENTRICLE_LABELS)
_TOGETHER = ((2, 3, 4, 5), (7, 8), (41, 42, 43, 44), (46, 47))
_IN_ONE_PIECE = (*_TOGETHER, *((x,) for x in LABELS_1[1:] if not any(x in group for group in _TOGETHER)))
"""Groups of labels of which the largest component is kept (the authors' topological classes)."""

_SIGMA_VOXELS = 0.5
_KEPT = 0.25
_SIDES, _LEAST_SIDE = 32, 128
_PERCENTILES = (0.5, 99.5)
_LEAST_ML = 100


def rescale(data: np.ndarray) -> np.ndarray:
    """`data` with its percentiles 0.5 and 99.5 (of all voxels) brought to 0 and 1, and clipped; 0 where they agree."""
    low, high = np.percentile(data, _PERCENTILES)
    if high <= low:
        return np.zeros(data.shape, np.float32)
    return ((np.clip(data, low, high) - low) / (high - low)).astype(np.float32)


def pad_for_network(data: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """`data` with zeros around, to sides that divide by 32 and are at least 128, and where in it `data` lies."""
    sides = [max(_LEAST_SIDE, -(-side // _SIDES) * _SIDES) for side in data.shape]
    low = [(wanted - side) // 2 for wanted, side in zip(sides, data.shape, strict=True)]
    width = [(a, wanted - side - a) for a, wanted, side in zip(low, sides, data.shape, strict=True)]
    place = tuple(slice(a, a + side) for a, side in zip(low, data.shape, strict=True))
    return np.pad(data, width), place


def blur(posteriors: jax.Array) -> jax.Array:
    """[D, H, W, L] smoothed by a Gaussian of half a voxel on 3 x 3 x 3 voxels, zeros around."""
    side = float(np.exp(-1 / (2 * _SIGMA_VOXELS**2)))
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    for axis in range(3):
        padded = jnp.pad(posteriors, [(1, 1) if k == axis else (0, 0) for k in range(4)])
        count = posteriors.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, start, start + count, axis=axis) for start in (0, 2))
        posteriors = middle * posteriors + side * (before + after)
    return posteriors


def mirror_order(labels: tuple[int, ...]) -> np.ndarray:
    """For each channel, the channel of the same structure on the other side."""
    other = {a: b for pair in SIDED for a, b in (pair, pair[::-1])}
    return np.array([labels.index(other.get(label, label)) for label in labels])


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest of the parts of a mask that touch by their faces; the mask itself when it is empty."""
    parts, count = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mask


def clean(posteriors: np.ndarray, labels: tuple[int, ...], place: tuple[slice, slice, slice]) -> np.ndarray:
    """Posteriors [D, H, W, L] without detached pieces, cut to `place`, their sum 1 at each voxel.

    Of everything that is not background, and then of each group of labels that lie in one piece, what is not in its
    largest component (posteriors above 0.25) becomes 0. The array given is changed.
    """
    whole = largest_component(posteriors[..., 1:].sum(axis=-1) > _KEPT)
    posteriors[..., 1:] *= whole[..., None]
    likely = {channel: posteriors[..., channel] > _KEPT for channel in range(1, len(labels))}
    for group in _IN_ONE_PIECE:
        channels = [labels.index(label) for label in group]
        mask = largest_component(np.any([likely[channel] for channel in channels], axis=0))
        for channel in channels:
            posteriors[..., channel] *= mask
    posteriors = posteriors[place]
    total = posteriors.sum(axis=-1)
    posteriors[..., 0][total == 0] = 1
    posteriors /= np.where(total == 0, 1, total)[..., None]
    return posteriors


@functools.partial(jax.jit, static_argnums=0)
def predict(network: SynthSegUNet, variables: dict, image: jax.Array) -> jax.Array:
    """Blurred posteriors [D, H, W, L] of an image [D, H, W]. Products of float32 are not shortened."""
    with jax.default_matmul_precision("highest"):
        scores = network.apply(variables, image[None, ..., None])[0]
    return blur(jax.nn.softmax(scores))


def volumes_of(posteriors: np.ndarray, labels: tuple[int, ...], voxel_mm3: float) -> dict[int, float]:
    """Soft volume in mL of every label but the background."""
    sums = posteriors.sum(axis=(0, 1, 2), dtype=np.float64) * voxel_mm3 / 1000
    return {label: float(volume) for label, volume in zip(labels, sums, strict=True) if label}


class SynthSeg(Backend):
    """SynthSeg 1.0 or 2.0 with the weights of `path`.

    `ventricles_ml` is the lateral and inferior lateral ventricles of both sides. `icv_ml` is the total intracranial
    volume, which 1.0 does not give, because it has no label for the CSF around the brain. Raises UserError for weights
    that cannot be read, that do not fit, or have another number of labels.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        read = read_keras_h5 if path.suffix.lower() in (".h5", ".hdf5") else read_torch_state_dict
        self._network, self._variables = load_synthseg(read(path))
        count = self._network.num_labels
        if count not in (len(LABELS_1), len(LABELS_2)):
            raise UserError(
                f"{path}: SynthSeg with {count} labels; {len(LABELS_1)} (1.0) or {len(LABELS_2)} (2.0) are wanted."
            )
        self._labels = LABELS_1 if count == len(LABELS_1) else LABELS_2
        self.name = "synthseg-1.0" if self._labels == LABELS_1 else "synthseg-2.0"
        self.sha256 = file_sha256(path)
        self.structures = {label: NAMES[label] for label in self._labels if label}
        self.columns = {
            VENTRICLES: "lateral and inferior lateral ventricles, left and right",
            **TOTALS,
            ICV: "total intracranial volume as imaged",
            **{column_of(name): name for name in self.structures.values()},
        }

    def __call__(self, image: Image, labels: bool = False) -> Measured:
        fine, spacing = resample_to_1mm(image.data, image.grid.spacing_mm)
        padded, place = pad_for_network(rescale(fine))
        if not padded.any():
            return self.nothing("no brain found: nearly every voxel has the same value")
        posteriors = clean(self._posteriors(padded), self._labels, place)
        found = volumes_of(posteriors, self._labels, float(np.prod(spacing)))
        if sum(found.values()) < _LEAST_ML:
            return self.nothing(f"no brain found: {sum(found.values()):.0f} mL of it")
        segmented = None
        if labels:
            chosen = np.asarray(self._labels, np.int16)[posteriors.argmax(axis=-1)]
            segmented = labels_on_grid(chosen, image.data.shape, image.grid.spacing_mm)
        return Measured(self._volumes(found, image.scale), segmented)

    def _posteriors(self, image: np.ndarray) -> np.ndarray:
        """Mean over the image and its mirror image (left and right exchanged)."""
        straight = np.array(predict(self._network, self._variables, image))
        mirrored = np.asarray(predict(self._network, self._variables, image[::-1]))
        straight += mirrored[::-1][..., mirror_order(self._labels)]
        straight *= 0.5
        return straight

    def _volumes(self, found: Mapping[int, float], scale: float | None) -> dict[str, float]:
        tissue = sum(volume for label, volume in found.items() if label not in _WITHOUT_TISSUE)
        return {
            VENTRICLES: sum(found[label] for label in VENTRICLE_LABELS),
            BRAIN: normalised(tissue, scale),
            TISSUE: tissue,
            ICV: sum(found.values()) if CSF in found else float("nan"),
            **{column_of(NAMES[label]): volume for label, volume in found.items()},
        }
