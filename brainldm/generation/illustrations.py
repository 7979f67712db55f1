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
from brainldm.weights.model_folder import Model, load_model

SHOWN = 6
"""Reconstructions shown, and values of the sweep."""

SWEPT = "ventricles_ml"


def illustrate(model_folder: str | Path, real: str | Path, seed: int = 0) -> dict[str, Any]:
    """The arguments `reconstructions` and `sweep` of `brainldm.evaluation.report.evaluate`, for the scans of `real`.

    The sweep takes ventricles_ml through the 5th to 95th percentile of the real scans, everything else at their median.
    """
    model = load_model(model_folder)
    records = read_dataset(real, model.spec.covariates)
    volumes = np.stack([load_image(r, model.spec.grid) for r in records[:SHOWN]])
    return {
        "reconstructions": list(zip(volumes, reconstruct(model, volumes), strict=True)),
        "sweep": _sweep(model, records, seed),
    }


def _sweep(model: Model, records: list[Scan], seed: int) -> tuple[str, list[float], np.ndarray] | None:
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
    sampling = model.spec.sampling
    sampler = make_sampler(
        model,
        batch_size=1,
        num_steps=sampling["num_steps"],
        eta=sampling["eta"],
        guidance=sampling["guidance"],
    )
    return SWEPT, values, sweep(sampler, covariates, SWEPT, values, others, seed, 0)
