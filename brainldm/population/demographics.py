"""Who lives in the embedded population: a plausible joint distribution of the conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from brainldm.datasets.covariates import AGE, BRAIN, VENTRICLES
from brainldm.runtime.errors import UserError

VENTRICLE_RESIDUAL_SD = 0.44
"""Of the logarithm of the ventricular volume given age and sex (IXI, 349 people of 44 years and more)."""
HEAD_ML = {"F": (1400.0, 105.0), "M": (1560.0, 120.0)}
"""Mean and standard deviation of the volume inside the skull."""
HEAD_RANGE_ML = (1150.0, 1850.0)
_MARGIN = 0.012
"""Asked volumes stay this far (relative) inside the range, so that the measured ones are inside it too."""
_CSF_SHARE = 0.025
"""Least share of the head that is neither tissue nor lateral ventricle."""


def sample_conditions(
    rng: np.random.Generator, reference_icv_ml: float, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """One person: age (years), sex (F or M), ventricles_ml, brain_ml (normalised for head size) and head_ml.

    Ages follow UK Biobank's imaging cohort (63.6 +- 7.5 years, 44 to 82; 47 % men), ventricles a regression
    on the IXI heads, ln mL = 3.05 + 0.0281 (age - 63.6) + 0.247 (male - 0.47) with a residual sd of 0.44;
    brain volume falls with age and with ventricles larger than expected. `overrides` replaces any of the five
    and leaves the others as drawn, but for head_ml, which follows an asked sex. Raises UserError for an
    override that no head can hold.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    unknown = set(overrides) - {"age", "sex", "ventricles_ml", "brain_ml", "head_ml"}
    if unknown:
        raise UserError(
            f"The embedded population has no condition {', '.join(sorted(unknown))}. "
            "It can be asked for age, sex, ventricles_ml, brain_ml and head_ml."
        )
    uniform = rng.random()
    is_male = rng.random() < 0.47
    ventricle_z, brain_z, head_z = rng.standard_normal(3)
    age = round(_truncated_normal(uniform, 63.6, 7.5, AGE.low, AGE.high), 1)
    residual = VENTRICLE_RESIDUAL_SD * ventricle_z
    ventricles = np.exp(3.05 + 0.0281 * (age - 63.6) + 0.247 * (is_male - 0.47) + residual)
    brain = 1497.0 - 4.4 * (age - 63.6) - 8.0 * (is_male - 0.47) - 35.0 * residual + 58.0 * brain_z
    sex = overrides.get("sex", "M" if is_male else "F")
    if sex not in HEAD_ML:
        raise UserError(f"sex is {sex!r}; the embedded population knows F and M.")
    mean, deviation = HEAD_ML[sex]
    person = {
        "age": age,
        "sex": sex,
        "ventricles_ml": _clip(ventricles, VENTRICLES.low, VENTRICLES.high),
        "brain_ml": _clip(brain, BRAIN.low, BRAIN.high),
        "head_ml": round(float(np.clip(mean + deviation * head_z, *HEAD_RANGE_ML)), 1),
    }
    person.update(overrides)
    most = largest_brain_ml(person, reference_icv_ml)
    if "brain_ml" not in overrides:
        person["brain_ml"] = round(min(person["brain_ml"], most), 2)
    if not 0.3 * reference_icv_ml < person["brain_ml"] <= most or not 3 <= person["ventricles_ml"] <= 300:
        raise UserError(
            f"A brain of {person['brain_ml']:g} mL (normalised for head size) with ventricles of "
            f"{person['ventricles_ml']:g} mL cannot be made in a head of {person['head_ml']:g} mL: at most "
            f"{most:.0f} mL of tissue fit. Ask for smaller ventricles, a smaller brain or a larger head_ml."
        )
    return person


def largest_brain_ml(person: Mapping[str, Any], reference_icv_ml: float) -> float:
    """The most tissue, normalised for head size, that the head holds beside its ventricles."""
    ventricles = person["ventricles_ml"] * reference_icv_ml / person["head_ml"]
    return (1 - _CSF_SHARE) * reference_icv_ml - ventricles


def _truncated_normal(uniform: float, mean: float, deviation: float, low: float, high: float) -> float:
    below, above = ndtr((low - mean) / deviation), ndtr((high - mean) / deviation)
    return float(mean + deviation * ndtri(below + uniform * (above - below)))


def _clip(value: float, low: float, high: float) -> float:
    return round(float(np.clip(value, low * (1 + _MARGIN), high * (1 - _MARGIN))), 3)
