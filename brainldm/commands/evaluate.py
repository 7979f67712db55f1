"""Evaluation of a generated dataset, with the model's reconstructions and a sweep when the model is at hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from brainldm.data.pipeline import load_image
from brainldm.datasets.bids import Record, read_dataset
from brainldm.evaluation.report import evaluate
from brainldm.generation.sampler import make_sampler, reconstruct, sweep
from brainldm.weights.model_folder import Model, load_model

SHOWN = 6
"""Reconstructions shown, and values of the sweep."""

SWEPT = "ventricles_ml"


def assess(
    synthetic: str | Path,
    real: str | Path,
    out: str | Path,
    model_folder: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`brainldm.evaluation.report.evaluate`, with pictures that need the model when `model_folder` names it.

    The sweep takes ventricles_ml through the 5th to 95th percentile of the real scans, everything else at their median.
    """
    if model_folder is None:
        return evaluate(synthetic, real, out, seed=seed)
    model = load_model(model_folder)
    records = read_dataset(real, model.spec.covariates)
    volumes = np.stack([load_image(r, model.spec.grid) for r in records[:SHOWN]])
    pairs = list(zip(volumes, reconstruct(model, volumes), strict=True))
    return evaluate(synthetic, real, out, seed=seed, reconstructions=pairs, sweep=_sweep(model, records, seed))


def _sweep(model: Model, records: list[Record], seed: int) -> tuple[str, list[float], np.ndarray] | None:
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
