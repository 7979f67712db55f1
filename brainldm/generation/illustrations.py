"""What a report shows of a model besides its samples: reconstructions of real scans, and a sweep of one condition."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.data.pipeline import load_image
from brainldm.datasets.bids import read_dataset
from brainldm.datasets.scans import Scan
from brainldm.generation.sampler import make_sampler, reconstruct, sweep
from brainldm.weights.gan_folder import GanModel, load_generator
from brainldm.weights.model_folder import Model

SHOWN = 6
"""Reconstructions shown, and values of the sweep."""

SWEPT = "ventricles_ml"


def illustrate(model_folder: str | Path, real: str | Path, seed: int = 0) -> dict[str, Any]:
    """The arguments `reconstructions` and `sweep` of `brainldm.evaluation.report.evaluate`, for the scans of `real`.

    The sweep takes ventricles_ml through the 5th to 95th percentile of the real scans, everything else at their median.
    Either is None where a model has no encoder, or not this condition.
    """
    model = load_generator(model_folder)
    records = read_dataset(real, model.spec.covariates)
    volumes = np.stack([load_image(r, model.spec.grid) for r in records[:SHOWN]])
    again = reconstruct(model, volumes)
    return {
        "reconstructions": None if again is None else list(zip(volumes, again, strict=True)),
        "sweep": _sweep(model, records, seed),
    }


def _sweep(model: Model | GanModel, records: list[Scan], seed: int) -> tuple[str, list[float], np.ndarray] | None:
    covariates = model.spec.covariates
    if SWEPT not in covariates.names:
        return None
    found = np.percentile([r.covariates[SWEPT] for r in records], [5, 95])
    item = covariates[SWEPT]
    values = np.geomspace(*np.clip(found, item.low, item.high), SHOWN).round(1).tolist()
    others = {
        c.name: statistics.mode(r.covariates[c.name] for r in records)
        if c.levels
        else statistics.median(r.covariates[c.name] for r in records)
        for c in covariates
    }
    sampler = make_sampler(model, model.spec.sampling, batch_size=1)
    return SWEPT, values, sweep(sampler, covariates, SWEPT, values, others, seed, 0)
