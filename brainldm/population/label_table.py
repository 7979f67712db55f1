"""Which structure a number in a label map is: FreeSurfer's, and those of SynthSeg for what lies outside a brain."""

from __future__ import annotations

import dataclasses

import numpy as np

OUTSIDE, FLUID, VENTRICLE, GREY, WHITE = range(5)
"""Kinds of structures. The fluid is all of it but that of the lateral ventricles."""

LARGEST = 15000
"""Past the largest number in the table."""

CSF, BRAINSTEM, LEFT_WHITE, RIGHT_WHITE = 24, 16, 2, 41


@dataclasses.dataclass(frozen=True)
class Structures:
    """Structures of one kind: their numbers, and their T1w intensity between grey (0) and white matter (1).

    An intensity is of the position of SynthSeg's T1w priors (Billot et al. 2023) between their grey and white matter.
    """

    kind: int
    whiteness: float
    numbers: tuple[int, ...]


_CORTICAL = (*range(36), *range(100, 176))
"""Parcels of the cortex within a hundred or a thousand of aparc, aparc.a2009s and wmparc."""

STRUCTURES = (
    # Skull, skin, eyes and vessels of whole-head maps; 30 and 62 are vessels.
    Structures(OUTSIDE, 0.0, (0, 30, 62, 165, 258, 259, *range(500, 531))),
    Structures(FLUID, 0.0, (CSF, 14, 15, 72, 257)),  # third, fourth and fifth ventricle, and around the brain
    # Lateral ventricles with their inferior horns and the choroid plexus.
    Structures(VENTRICLE, 0.0, (4, 5, 31, 43, 44, 63, 136, 137, 163, 164)),
    Structures(GREY, 0.0, (3, 42, 17, 53, 18, 54, 26, 58, 80, 96, 97)),  # cortex, hippocampus, amygdala, accumbens
    Structures(GREY, 0.0, tuple(base + n for base in (1000, 2000) for n in _CORTICAL)),
    Structures(GREY, 0.0, tuple(base + n for base in (11000, 12000) for n in range(100, 176))),
    Structures(GREY, -0.12, (8, 47, 172)),  # cortex of the cerebellum, vermis
    Structures(GREY, 0.10, (11, 50)),  # caudate
    Structures(GREY, 0.42, (12, 51)),  # putamen
    Structures(GREY, 0.55, (9, 48, 10, 49)),  # thalamus
    Structures(WHITE, 1.0, (2, 41, 85, 192, *range(250, 256), 5001, 5002)),  # with callosum and chiasm
    Structures(WHITE, 1.0, tuple(base + n for base in (3000, 4000) for n in _CORTICAL)),
    Structures(WHITE, 0.85, (13, 52)),  # pallidum
    Structures(WHITE, 0.72, (28, 60)),  # ventral diencephalon
    Structures(WHITE, 0.78, (16, 170, 171, 173, 174, 175, 178)),  # brainstem
    Structures(WHITE, 0.85, (7, 46)),  # white matter of the cerebellum
    Structures(WHITE, 0.60, (25, 57, 77, 78, 79)),  # lesions and hypointensities
)

NAMES = {
    2: "left cerebral white matter",
    3: "left cerebral cortex",
    4: "left lateral ventricle",
    5: "left inferior lateral ventricle",
    7: "left cerebellum white matter",
    8: "left cerebellum cortex",
    10: "left thalamus",
    11: "left caudate",
    12: "left putamen",
    13: "left pallidum",
    14: "third ventricle",
    15: "fourth ventricle",
    16: "brainstem",
    17: "left hippocampus",
    18: "left amygdala",
    24: "CSF",
    26: "left accumbens",
    28: "left ventral diencephalon",
    41: "right cerebral white matter",
    42: "right cerebral cortex",
    43: "right lateral ventricle",
    44: "right inferior lateral ventricle",
    46: "right cerebellum white matter",
    47: "right cerebellum cortex",
    49: "right thalamus",
    50: "right caudate",
    51: "right putamen",
    52: "right pallidum",
    53: "right hippocampus",
    54: "right amygdala",
    58: "right accumbens",
    60: "right ventral diencephalon",
}
"""The structures that a written label map tells apart, in the words of `brainldm measure`."""

_MERGED = {5001: 2, 5002: 41, 9: 10, 48: 49, 31: 4, 63: 43, 136: 4, 137: 5, 163: 43, 164: 44, 72: CSF, 257: CSF}
_MERGED |= {25: 2, 57: 41, 78: 2, 79: 41, 96: 18, 97: 54, **dict.fromkeys((170, 171, 173, 174, 175, 178), 16)}


def kinds() -> np.ndarray:
    """The kind of every number, int8 [LARGEST]; -1 where the number is none of the table."""
    table = np.full(LARGEST, -1, np.int8)
    for structures in STRUCTURES:
        table[list(structures.numbers)] = structures.kind
    return table


def whiteness() -> np.ndarray:
    """Where the T1w intensity of every number lies between grey (0) and white matter (1), float32 [LARGEST]."""
    table = np.zeros(LARGEST, np.float32)
    for structures in STRUCTURES:
        table[list(structures.numbers)] = structures.whiteness
    return table


def merged() -> np.ndarray:
    """The number of `NAMES` that a number becomes in a written label map, uint8 [LARGEST]; 0 outside the brain.

    Parcels become the cortex or the white matter of their side; what has no side in the table becomes CSF, or 0 where a
    voxel has to find its own (white matter without a side).
    """
    table = np.zeros(LARGEST, np.uint8)
    for structures in STRUCTURES:
        left, right = (LEFT_WHITE + 1, RIGHT_WHITE + 1) if structures.kind == GREY else (LEFT_WHITE, RIGHT_WHITE)
        for number in structures.numbers:
            if number in NAMES:
                table[number] = number
            elif number in _MERGED:
                table[number] = _MERGED[number]
            elif number >= 1000 and structures.kind in (GREY, WHITE):
                table[number] = left if number // 1000 in (1, 3, 11) else right
    return table
