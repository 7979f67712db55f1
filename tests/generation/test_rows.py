"""What Python code may hand to `generate`: refused in a sentence before anything is made."""

import math

import pytest

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.generation.conditions import check_conditions
from brainldm.generation.dataset import Settings
from brainldm.runtime.errors import UserError

ROW = {"sex": "F", "age": 65.0, "ventricles_ml": 20.0, "brain_ml": 1450.0}


@pytest.mark.parametrize("extrapolate", [False, True])
@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "The rows are .."),
        (ROW, "a list with a dictionary"),
        ("F", "The rows are 'F'"),
        ([3], "Brain 1 is 3"),
        ([ROW, {**ROW, "sex": "f"}], "Brain 2: sex is 'f'; F or M"),
        ([{**ROW, "sex": 1}], "sex is 1"),
        ([{**ROW, "sex": ["F"]}], "sex is"),
        ([{**ROW, "age": None}], "age is None; a number"),
        ([{**ROW, "age": "65"}], "age is '65'"),
        ([{**ROW, "age": True}], "age is True"),
        ([{**ROW, "age": math.nan}], "age is nan"),
        ([{**ROW, "brain_ml": math.inf}], "brain_ml is inf"),
        ([{**ROW, "age": 10**400}], "age is 1000"),
    ],
)
def test_rows_that_are_no_conditions_are_refused(rows, said, extrapolate, subset):
    with pytest.raises(UserError, match=said):
        check_conditions(rows, Covariates(), extrapolate, subset)


def test_good_rows_are_taken_with_more_columns_than_needed():
    assert check_conditions([ROW, {**ROW, "note": "x"}], Covariates(), extrapolate=False) == [False, False]


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 1.5}, {"seed": None}, {"batch_size": 0}, {"repeat": 0}, {"sampling": None}]
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError, match="it must be|is wanted"):
        Settings(**wrong)
    assert Settings(Sampling(2), seed=2**63 - 1).seed == 2**63 - 1
