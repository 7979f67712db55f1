"""The backends of `brainldm measure` by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from brainldm.evaluation.measures.backend import Backend
from brainldm.runtime.errors import UserError


def _synthseg(path: Path) -> Backend:
    from brainldm.evaluation.measures.synthseg import SynthSeg

    return SynthSeg(path)


def _meshnet(path: Path) -> Backend:
    from brainldm.evaluation.measures.meshnet import MeshNetSegmenter

    return MeshNetSegmenter(path)


WEIGHT_FREE = "weight-free"
NETWORKS: dict[str, tuple[Callable[[Path], Backend], str]] = {
    "synthseg": (_synthseg, "synthseg_1.0.h5, synthseg_2.0.h5 or DIPY's synthseg_model_weights.pth"),
    "meshnet": (_meshnet, "model.json of brainchop's model of 18 classes, with its model.bin beside it"),
}
"""Backends with weights: how each is made, and what its weights are called."""
NAMES = (WEIGHT_FREE, *NETWORKS)


def open_backend(name: str | None, weights: str | Path | None = None) -> Backend:
    """The backend `name`, or the one that the `weights` are of (None and None: weight-free).

    Raises UserError for an unknown name, weights that are missing, not wanted, or cannot be used.
    """
    if name is None:
        name = WEIGHT_FREE if weights is None else _kind_of(Path(weights))
    if name not in NAMES:
        raise UserError(f"No backend is called {name!r}; there are {', '.join(NAMES)}.")
    if name == WEIGHT_FREE:
        if weights is not None:
            raise UserError(f"The {WEIGHT_FREE} measure takes no weights. Leave --weights out, or --backend.")
        from brainldm.evaluation.measures.weight_free import WeightFree

        return WeightFree()
    make, wanted = NETWORKS[name]
    if weights is None:
        raise UserError(
            f"The backend {name} needs its weights, which cannot be shipped with brainldm: give --weights FILE, "
            f"{wanted}."
        )
    return make(Path(weights))


def _kind_of(weights: Path) -> str:
    return "synthseg" if weights.suffix.lower() in (".h5", ".hdf5", ".pt", ".pth") else "meshnet"
