"""Small random changes of a training volume: flip, affine, intensity shift, contrast.

The kinds, their order and the ranges of configs/paper_autoencoder.py are those of the first author's public recipe
(generative_brain, 2023). The conditions of a scan stay as they are, although a scale of 2 % changes volumes by 6 %.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from brainldm.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How often each change is made (a probability per volume) and how large it can be; by default nothing is changed.

    flip: left and right. affine: about the centre of the volume, by angles up to `rotation_degrees` around each axis,
    shifts up to `translation_mm` along each, factors from 1 - `scale` to 1 + `scale` along each, outside of the volume
    being 0. shift: adds up to `shift` either way. contrast: raises intensities, scaled to [0, 1] between the
    volume's own minimum and maximum, to a power between the two numbers of `gamma`.
    Raises UserError for values that cannot be.
    """

    flip_probability: float = 0.0
    affine_probability: float = 0.0
    rotation_degrees: float = 0.0
    translation_mm: float = 1.0
    scale: float = 0.02
    shift_probability: float = 0.0
    shift: float = 0.05
    contrast_probability: float = 0.0
    gamma: tuple[float, float] = (0.97, 1.03)

    def __post_init__(self):
        for name in ("flip", "affine", "shift", "contrast"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise UserError(f"config.data.augment.{name}_probability is {value!r}; it lies between 0 and 1.")
        limits = {"rotation_degrees": 180, "translation_mm": 100, "scale": 0.5, "shift": 1}
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise UserError(f"config.data.augment.{name} is {value!r}; it lies between 0 and {limit}.")
        if len(self.gamma) != 2 or not 0 < self.gamma[0] <= self.gamma[1]:
            raise UserError(f"config.data.augment.gamma is {self.gamma!r}; a lower and an upper power are wanted.")

    @property
    def active(self) -> bool:
        """Whether anything is ever changed."""
        return any((self.flip_probability, self.affine_probability, self.shift_probability, self.contrast_probability))

    def __call__(self, image: np.ndarray, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
        """A changed copy of `image` [D, H, W] (RAS, values in [0, 1]), float32 in [0, 1]; the input stays as it is.

        The same numbers are drawn whatever is switched on, so that one switch does not move the other changes.
        """
        chances = rng.random(4)
        angles, shifts, factors = rng.uniform(-1, 1, (3, 3))
        offset, power = rng.uniform(-1, 1), rng.uniform(*self.gamma)
        if chances[0] < self.flip_probability:
            image = image[::-1]
        if chances[1] < self.affine_probability:
            angles = np.deg2rad(angles * self.rotation_degrees)
            image = _affine(image, angles, shifts * self.translation_mm / spacing_mm, 1 + factors * self.scale)
        image = np.array(image, np.float32, order="C")
        if chances[2] < self.shift_probability:
            image += np.float32(offset * self.shift)
        if chances[3] < self.contrast_probability:
            low, high = image.min(), image.max()
            if high > low:
                image -= low
                image /= high - low
                np.power(image, np.float32(power), out=image)
                image *= high - low
                image += low
        return np.clip(image, 0, 1, out=image)


def _affine(image: np.ndarray, angles: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`image` scaled, rotated (radians, around x, then y, then z) about its centre and shifted (voxels)."""
    centre = (np.asarray(image.shape) - 1) / 2
    options = {"output": np.float32, "order": 1, "mode": "constant", "cval": 0.0}
    if not angles.any():
        # A diagonal as a vector: scipy then works axis by axis, which is faster.
        return ndimage.affine_transform(image, 1 / scale, centre - (centre + shift) / scale, **options)
    backward = np.diag(1 / scale) @ _rotation(angles).T
    return ndimage.affine_transform(image, backward, centre - backward @ (centre + shift), **options)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rz @ Ry @ Rx, [3, 3]."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[one, two], [one, two]] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
