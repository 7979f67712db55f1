"""The measure without trained weights (see `volumetry`) as a backend: lateral ventricles and brain tissue."""

from __future__ import annotations

from brainldm.evaluation.measures.backend import BRAIN, ICV, TISSUE, TOTALS, VENTRICLES, Backend, Image, Measured
from brainldm.evaluation.measures.volumetry import measure_with_labels


class WeightFree(Backend):
    """Needs voxels of 1, 2 or 4 mm. Its label map holds the ventricles alone, left and right together."""

    name = "weight-free"
    structures = {1: "lateral ventricles"}
    needs_stripped = True
    columns = {
        VENTRICLES: "lateral ventricles, left and right, from CSF alone",
        **TOTALS,
        ICV: "inside of the head mask as imaged",
    }

    def __call__(self, image: Image, labels: bool = False) -> Measured:
        found, mask = measure_with_labels(image.data, image.grid, image.people, image.scale)
        volumes = {name: getattr(found, name) for name in (VENTRICLES, BRAIN, TISSUE, ICV)}
        return Measured(volumes, mask.astype("int16") if labels and not found.reason else None, found.reason)
