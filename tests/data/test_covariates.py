"""Conditions: units, coding, ranges."""

import numpy as np
import pytest

from brainldm.data.covariates import Covariates
from brainldm.errors import UserError

ROW = {"sex": "M", "age": 63, "ventricles_ml": 30.0, "brain_ml": 1500.0}


def test_codes_are_those_of_the_released_model():
    codes = Covariates().encode(
        [
            {"sex": "F", "age": 44, "ventricles_ml": 6.99568, "brain_ml": 1144.24},
            {"sex": "M", "age": 82, "ventricles_ml": 171.375, "brain_ml": 1793.91},
            {"sex": "M", "age": 70.6, "ventricles_ml": 40.0, "brain_ml": 1400.0},
        ]
    )
    assert codes.dtype == np.float32
    np.testing.assert_allclose(codes[0], 0, atol=1e-7)
    np.testing.assert_allclose(codes[1], 1, atol=1e-7)
    expected = [
        1.0,
        (70.6 - 44) / 38,
        (40000 - 6995.68) / (171375.0 - 6995.68),
        (1400e3 - 1144240) / (1793910 - 1144240),
    ]
    np.testing.assert_allclose(codes[2], expected, rtol=1e-6)


def test_decoding_is_the_reverse_of_coding():
    covariates = Covariates()
    row = covariates.decode(covariates.encode([ROW]))[0]
    assert row["sex"] == "M"
    assert [row[n] for n in covariates.names[1:]] == pytest.approx([63, 30, 1500], rel=1e-5)


@pytest.mark.parametrize("word, sex", [("F", "F"), ("f", "F"), ("female", "F"), ("Male", "M"), (" m ", "M")])
def test_words_for_sex(word, sex):
    assert Covariates()["sex"].parse(word, "here") == sex


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("sex", "1", "F or M"),
        ("sex", "x", "F or M"),
        ("sex", "", "missing"),
        ("age", "n/a", "missing"),
        ("age", "sixty", "years"),
        ("age", "inf", "years"),
        ("ventricles_ml", "NaN", "missing"),
    ],
)
def test_values_that_mean_nothing_are_refused(name, value, said):
    with pytest.raises(UserError, match=f"the table.*{name}.*{said}"):
        Covariates().parse({**ROW, name: value}, "the table")


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match="no column brain_ml"):
        Covariates().parse({k: v for k, v in ROW.items() if k != "brain_ml"}, "the table")


def test_what_lies_outside_is_said_in_units():
    said = Covariates().outside({**ROW, "age": 90, "ventricles_ml": 5})
    assert said == ["age 90 years (range 44 to 82)", "ventricles_ml 5 mL (range 6.99568 to 171.375)"]


def test_json_keeps_everything():
    covariates = Covariates().with_ranges({"age": (18, 90)})
    assert Covariates.from_json(covariates.to_json()) == covariates
    assert covariates["age"].encode(54) == 0.5


@pytest.mark.parametrize("ranges", [{"age": (5, 5)}, {"age": (9, 1)}, {"sex": (0, 1)}])
def test_impossible_ranges_are_refused(ranges):
    with pytest.raises(UserError, match="range"):
        Covariates().with_ranges(ranges)
