"""The distribution of a model's people."""

import json

import numpy as np
import pytest

from brainldm.datasets.covariates import Covariates, parse_extra
from brainldm.datasets.demography import Demography, fit_demography
from brainldm.generation.conditions import draw_conditions, parse_sessions, session_conditions, sweep_conditions
from brainldm.runtime.errors import UserError

COVARIATES = Covariates()


def people(count=2000, seed=0):
    """Ventricles grow with age and are larger in men; brains shrink with age."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        sex, age = "FM"[int(rng.random() < 0.4)], float(rng.uniform(45, 80))
        ventricles = float(np.exp(2.6 + 0.02 * (age - 60) + 0.3 * (sex == "M") + 0.3 * rng.standard_normal()))
        brain = float(1550 - 4 * (age - 60) + 40 * rng.standard_normal())
        rows.append({"sex": sex, "age": age, "ventricles_ml": ventricles, "brain_ml": brain})
    return rows


@pytest.fixture(scope="module")
def demography():
    return fit_demography(people(), COVARIATES)


def column(rows, name):
    return np.array([row[name] for row in rows])


def test_drawn_people_are_as_those_it_was_made_of(demography):
    rows, real = draw_conditions(COVARIATES, 4000, 1, {}, demography), people(4000, seed=5)
    assert np.mean(column(rows, "sex") == "M") == pytest.approx(0.4, abs=0.03)
    for name in ("age", "ventricles_ml", "brain_ml"):
        levels = [5, 25, 50, 75, 95]
        np.testing.assert_allclose(*(np.percentile(column(r, name), levels) for r in (rows, real)), rtol=0.06)
    pairs = [("age", "ventricles_ml"), ("age", "brain_ml"), ("ventricles_ml", "brain_ml")]
    for pair in pairs:
        one, two = (np.corrcoef(*(column(r, name) for name in pair))[0, 1] for r in (rows, real))
        assert one == pytest.approx(two, abs=0.06), pair
    ratio = [np.median(column([x for x in r if x["sex"] == "M"], "ventricles_ml")) for r in (rows, real)]
    assert ratio[0] == pytest.approx(ratio[1], rel=0.08)


def test_what_is_asked_for_is_kept_and_the_rest_follows(demography):
    old = draw_conditions(COVARIATES, 1500, 2, {"age": "78", "sex": "M"}, demography)
    young = draw_conditions(COVARIATES, 1500, 2, {"age": "48", "sex": "F"}, demography)
    assert set(column(old, "age")) == {78.0} and set(column(young, "sex")) == {"F"}
    # exp(2.6 + 0.02 * 18 + 0.3) and exp(2.6 - 0.02 * 12)
    assert np.median(column(old, "ventricles_ml")) == pytest.approx(26.0, rel=0.12)
    assert np.median(column(young, "ventricles_ml")) == pytest.approx(10.6, rel=0.12)
    assert np.mean(column(young, "brain_ml")) - np.mean(column(old, "brain_ml")) == pytest.approx(120, rel=0.15)


def test_a_range_holds_and_has_its_people(demography):
    rows = draw_conditions(COVARIATES, 3000, 3, {"ventricles_ml": "30:200"}, demography)
    real = [row for row in people(20000, seed=9) if row["ventricles_ml"] >= 30]
    assert column(rows, "ventricles_ml").min() >= 30
    assert np.mean(column(rows, "age")) == pytest.approx(np.mean(column(real, "age")), abs=1.5)
    assert np.mean(column(rows, "sex") == "M") == pytest.approx(np.mean(column(real, "sex") == "M"), abs=0.06)


def test_a_range_that_nobody_reaches_is_filled(demography):
    values = column(draw_conditions(COVARIATES, 200, 3, {"age": "90:95"}, demography), "age")
    assert 90 <= values.min() < 91 and 94 < values.max() <= 95


def test_a_row_depends_on_seed_and_number_alone(demography):
    rows = draw_conditions(COVARIATES, 30, 7, {"age": "60:75"}, demography)
    assert draw_conditions(COVARIATES, 12, 7, {"age": "60:75"}, demography) == rows[:12]
    assert draw_conditions(COVARIATES, 30, 8, {"age": "60:75"}, demography) != rows


def test_percentiles_are_those_of_people_alike(demography):
    alike = [row["ventricles_ml"] for row in people(60000, seed=3) if row["sex"] == "F" and 69 < row["age"] < 71]
    for share in (10, 50, 95):
        value = float(np.percentile(alike, share))
        assert demography.percentile("ventricles_ml", value, {"sex": "F", "age": 70.0}) == pytest.approx(share, abs=6)
    assert demography.percentile("age", 44.0, {}) < 1 < 99 < demography.percentile("age", 90.0, {})


def test_nobodys_row_is_in_it_and_it_comes_back(demography):
    text = json.dumps(demography.to_json())
    assert len(text) < 2500
    again = Demography.from_json(json.loads(text), COVARIATES)
    fixed = {"sex": "F"}
    assert draw_conditions(COVARIATES, 5, 1, fixed, again) == draw_conditions(COVARIATES, 5, 1, fixed, demography)


def test_other_people_with_the_same_dependences(demography):
    other = demography.with_marginals({"age": [70, 80], "sex": {"F": 3, "M": 1}}, COVARIATES)
    rows = draw_conditions(COVARIATES, 2000, 1, {}, other)
    assert column(rows, "age").min() >= 70 and np.mean(column(rows, "sex") == "F") == pytest.approx(0.75, abs=0.03)
    for wanted, said in (({"age": [80, 70]}, "ascending"), ({"sex": [1, 2]}, "shares"), ({"size": [1, 2]}, "size")):
        with pytest.raises(UserError, match=said):
            demography.with_marginals(wanted, COVARIATES)


def test_a_person_keeps_sex_and_rank_through_the_ages(demography):
    first = draw_conditions(COVARIATES, 300, 2, {"age": "55"}, demography)
    rows = session_conditions(COVARIATES, demography, "age", [55.0, 65.0, 75.0], first)
    visits = [rows[k::3] for k in range(3)]
    assert visits[0] == first
    assert [set(column(visit, "age")) for visit in visits] == [{55.0}, {65.0}, {75.0}]
    assert all(row["sex"] == visits[0][k]["sex"] for visit in visits for k, row in enumerate(visit))
    for name, grows in (("ventricles_ml", 1), ("brain_ml", -1)):
        values = np.stack([column(visit, name) for visit in visits])
        assert (np.diff(values, axis=0) * grows >= 0).all() and (np.diff(values, axis=0) != 0).mean() > 0.98
        # exp(0.02 * 10) for ten years, 4 mL a year: the changes of the people it was made of
        change = np.median(values[2] / values[0]) if grows > 0 else np.median(values[0] - values[2])
        assert change == pytest.approx(np.exp(0.02 * 20) if grows > 0 else 80, rel=0.15)
        for row in (first[7], first[150]):
            k = first.index(row)
            said = [
                demography.percentile(name, visit[k][name], {n: visit[k][n] for n in ("age", "sex")})
                for visit in visits
            ]
            assert max(said) - min(said) < 3, (name, said)


def test_people_of_a_table_go_on_from_their_own_age_and_values(demography):
    person = {"sex": "M", "age": 60.4567, "ventricles_ml": 500.0, "brain_ml": 1500.0}
    some = {"sex": "F", "age": 60.0}
    rows = session_conditions(COVARIATES, demography, "age", [60.4567, 70.0], [person, some])
    assert rows[0] == person and rows[1]["ventricles_ml"] >= 500.0 and rows[1]["brain_ml"] < 1500.0
    assert rows[2:] == [{"sex": "F", "age": 60.4567}, {"sex": "F", "age": 70.0}]
    with pytest.raises(UserError, match="Person 1: age is not given"):
        session_conditions(COVARIATES, demography, "age", [60.0, 70.0], [{"sex": "F"}])


@pytest.mark.parametrize("text", ["age", "age=60", "age=70,60", "age=60,60", "age=60,x", "sex=F,M", "size=1,2"])
def test_sessions_that_are_none_are_refused(text):
    with pytest.raises(UserError):
        parse_sessions(COVARIATES, text)
    assert parse_sessions(COVARIATES, "age=60,65.5") == ("age", [60.0, 65.5])


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["age"]},
        {"correlation": [[1]]},
        {"correlation": np.full((4, 4), 1.0).tolist()},
        {"quantiles": {"age": [3, 2, 1]}},
        {"shares": {"sex": {"F": -1, "M": 2}}},
        {"shares": 3},
    ],
)
def test_a_distribution_that_is_none_is_refused(demography, change):
    with pytest.raises(UserError):
        Demography.from_json({**demography.to_json(), **change}, COVARIATES)


def test_few_people_and_constant_columns_make_a_distribution():
    covariates = Covariates((*COVARIATES, parse_extra("site=A|B|C")))
    rows = [{**row, "site": "B", "age": 60.0} for row in people(5)]
    found = fit_demography(rows, covariates)
    drawn = draw_conditions(covariates, 50, 0, {}, found)
    assert {row["site"] for row in drawn} == {"B"} and {row["age"] for row in drawn} == {60.0}


def test_a_sweep_changes_one_condition_of_each_row():
    rows = [{"sex": "F", "age": 60.0}, {"sex": "M", "age": 70.0}]
    swept = sweep_conditions(COVARIATES, "age=50:60:3", rows)
    assert [row["age"] for row in swept] == [50.0, 55.0, 60.0] * 2 and [row["sex"] for row in swept] == [*"FFFMMM"]
    assert [row["sex"] for row in sweep_conditions(COVARIATES, "sex=F|M", rows[:1])] == ["F", "M"]
    for text in ("age", "age=50:60", "age=50:60:1", "age=a:b:3", "sex=F", "size=1:2:3"):
        with pytest.raises(UserError):
            sweep_conditions(COVARIATES, text, rows)
