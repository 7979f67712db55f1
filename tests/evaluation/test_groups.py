"""Requested against measured by sex and decade."""

from types import SimpleNamespace

import numpy as np
import pytest

from brainldm.evaluation.groups import agreement_in_groups, groups_of


def scans(count):
    ages = [None if k == 0 else 60 + k % 20 for k in range(count)]
    return [
        SimpleNamespace(covariates={"sex": "FM"[k % 2], **({} if age is None else {"age": float(age)})})
        for k, age in enumerate(ages)
    ]


def test_groups_are_of_sex_and_decade():
    found = groups_of(scans(40))
    assert {name: int(which.sum()) for name, which in found.items()} == {
        "F": 20,
        "M": 20,
        "60 to 69 years": 19,
        "70 to 79 years": 20,
    }


def test_each_group_has_its_own_line():
    records, rng = scans(40), np.random.default_rng(0)
    asked = rng.uniform(10, 60, 40)
    sex = np.array([record.covariates["sex"] == "M" for record in records])
    found = agreement_in_groups(
        records, {"ventricles_ml": asked}, {"ventricles_ml": np.where(sex, 0.5 * asked, asked)}, seed=0
    )["ventricles_ml"]
    assert found["F"]["slope"]["value"] == pytest.approx(1) and found["M"]["slope"]["value"] == pytest.approx(0.5)
    assert found["F"]["mae"]["value"] == pytest.approx(0) and found["M"]["mae"]["value"] > 5


def test_of_few_brains_nothing_is_said():
    records = scans(6)
    assert set(agreement_in_groups(records, {"x": np.arange(6.0)}, {"x": np.arange(6.0)}, seed=0)["x"]) == {
        "60 to 69 years"
    }
