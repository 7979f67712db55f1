"""Conditions: units, coding, ranges."""

import json

import numpy as np
import pytest

from brainldm.datasets.covariates import AGE, SEX, Covariates, parse_extra
from brainldm.runtime.errors import UserError

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
    assert covariates["age"].encode(54) == (0.5,)


@pytest.mark.parametrize("ranges", [{"age": (5, 5)}, {"age": (9, 1)}, {"sex": (0, 1)}])
def test_impossible_ranges_are_refused(ranges):
    with pytest.raises(UserError, match="range"):
        Covariates().with_ranges(ranges)


def with_extra(*texts):
    return Covariates((*Covariates().items, *map(parse_extra, texts)))


EXTRA = ("icv_ml[mL]=1000:2000", "scanner=A|B", "site=Leeds|York|Hull")


def test_further_conditions_widen_the_vector():
    covariates = with_extra(*EXTRA)
    assert (len(covariates), covariates.width) == (7, 4 + 1 + 1 + 3)
    assert Covariates().width == 4
    rows = [{**ROW, "icv_ml": 1250.0, "scanner": "B", "site": site} for site in ("Leeds", "York", "Hull")]
    codes = covariates.encode(rows)
    assert codes.shape == (3, 9)
    np.testing.assert_array_equal(codes[:, :4], Covariates().encode([ROW] * 3))
    np.testing.assert_array_equal(codes[:, 4:6], [[0.25, 1]] * 3)
    np.testing.assert_array_equal(codes[:, 6:], np.eye(3))
    decoded = covariates.decode(codes + 0.01)
    assert [row["site"] for row in decoded] == ["Leeds", "York", "Hull"]
    assert [row["scanner"] for row in decoded] == ["B"] * 3
    assert covariates.encode([]).shape == (0, 9)


def test_a_model_file_of_before_further_conditions_is_read():
    """What model.json held when no condition had more than two levels."""
    old = [
        {"name": "sex", "unit": "", "description": "", "low": 0.0, "high": 1.0, "levels": ["F", "M"]},
        {"name": "age", "unit": "years", "description": "", "low": 44.0, "high": 82.0, "levels": None},
    ]
    covariates = Covariates.from_json(old)
    assert (covariates.names, covariates.width) == (("sex", "age"), 2)
    np.testing.assert_array_equal(covariates.encode([{"sex": "M", "age": 63}]), [[1, 0.5]])


def test_json_keeps_further_conditions():
    covariates = with_extra(*EXTRA)
    assert Covariates.from_json(json.loads(json.dumps(covariates.to_json()))) == covariates
    assert covariates.column_descriptions()["site"]["Levels"].keys() == {"Leeds", "York", "Hull"}
    assert covariates["icv_ml"].unit == "mL"


@pytest.mark.parametrize("cell, level", [("Leeds", "Leeds"), ("leeds", "Leeds"), (" HULL ", "Hull")])
def test_levels_are_words(cell, level):
    assert parse_extra("site=Leeds|York|Hull").parse(cell, "here") == level


def test_levels_that_are_numbers():
    assert parse_extra("field=1.5|3|7").parse("3.0", "here") == "3"


def test_levels_that_differ_by_case_alone():
    site = parse_extra("site=a|A|b")
    assert (site.parse("A", "here"), site.parse("a", "here"), site.parse("B", "here")) == ("A", "a", "b")


@pytest.mark.parametrize(
    "text, value, said",
    [
        ("site=Leeds|York|Hull", "Bath", "the table: site is 'Bath'.*Leeds, York or Hull"),
        ("site=Leeds|York|Hull", "n/a", "site is missing.*leave site out"),
        ("icv_ml[mL]=1000:2000", "big", "icv_ml is 'big', not a number. Give it in mL"),
        ("score=0:30", "big", "score is 'big', not a number.$"),
    ],
)
def test_values_of_further_conditions_that_mean_nothing(text, value, said):
    with pytest.raises(UserError, match=said):
        parse_extra(text).parse(value, "the table")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is no condition"),
        ("icv", "is no condition"),
        ("=1:2", "is no condition"),
        ("two words=1:2", "is no condition"),
        ("icv=", "is no condition"),
        ("icv=5", "no range"),
        ("icv=5:5", "no range"),
        ("icv=9:1", "no range"),
        ("icv=1:inf", "no range"),
        ("icv=a:b", "no range"),
        ("site=A|A", "different levels"),
        ("site=A|", "different levels"),
        ("site=|n/a", "different levels"),
        ("site[mL]=A|B", "no unit"),
        ("participant_id=A|B", "cannot be a condition"),
        ("split=train|test", "cannot be a condition"),
    ],
)
def test_texts_that_name_no_condition(text, said):
    with pytest.raises(UserError, match=rf"config.covariates.extra.*{said}"):
        parse_extra(text)


def test_one_name_is_one_condition():
    with pytest.raises(UserError, match="site is named twice"):
        with_extra("site=A|B", "site=1:2")


def test_missing_volumes_are_to_be_measured():
    with pytest.raises(UserError, match="ventricles_ml is missing. Measure it.*leave ventricles_ml out of config"):
        Covariates().parse({**ROW, "ventricles_ml": "n/a"}, "the table")


def test_shares_of_a_range_and_of_levels():
    site = parse_extra("site=A|B|C")
    assert [site.at(share) for share in (0, 0.32, 0.34, 0.67, 0.999)] == ["A", "A", "B", "C", "C"]
    assert (SEX.at(0.49), SEX.at(0.5), AGE.at(0.5)) == ("F", "M", 63)
    assert (site.span, AGE.span, parse_extra("a=1:2").span) == ("A, B or C", "44 to 82 years", "1 to 2")


def test_range_words_of_a_condition_without_unit():
    assert Covariates((parse_extra("score=0:30"),)).outside({"score": 40}) == ["score 40 (range 0 to 30)"]
