"""What `check` is asked."""

from __future__ import annotations

import dataclasses

from brainldm.datasets.covariates import Covariates
from brainldm.fingerprint.data_costs import DataSizes

SAMPLE = 200
"""Scans read in full when nothing else is asked; a smaller dataset is read whole."""


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """How thoroughly to look, and what the data are for.

    `spacing_mm` None takes the grid that most scans lie on. `sample` None reads SAMPLE scans; `full` reads all, and
    compares prepared files with the hashes in their sidecars. `scaling` and `sizes` are the config's.
    """

    covariates: Covariates = Covariates()
    spacing_mm: float | None = None
    scaling: str = "minmax"
    sizes: DataSizes = DataSizes()
    sample: int | None = None
    full: bool = False
    workers: int = 1
