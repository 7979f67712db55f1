"""Which participants train, validate and test."""

import pytest

from brainldm.datasets.scans import Scan
from brainldm.datasets.splits import split, split_three
from brainldm.runtime.errors import UserError


def people(count, **options):
    return [Scan(f"sub-{i:03d}", s, None, {}, **options) for i in range(count) for s in ("ses-1", "ses-2")]


def test_three_splits_are_disjoint_and_stay_when_others_join():
    few, many = split_three(people(150), 0.1, 0.2), split_three(people(300), 0.1, 0.2)
    sets = {name: {r.participant_id for r in records} for name, records in few.items()}
    assert not sets["train"] & sets["validation"] and not sets["test"] & (sets["train"] | sets["validation"])
    assert sum(map(len, few.values())) == 300
    assert 5 <= len(sets["validation"]) <= 25 and 18 <= len(sets["test"]) <= 42
    for name, records in few.items():
        assert {r.name for r in records} <= {r.name for r in many[name]}


def test_a_test_split_moves_nobody_into_validation():
    without, some = split_three(people(200), 0.1), split_three(people(200), 0.1, 0.3)
    assert without["test"] == [] and without["validation"] == some["validation"]
    assert split(people(200), 0.1, 0.3) == (some["train"], some["validation"])


@pytest.mark.parametrize("fractions", [(0.6, 0.4), (0.5, 0.9), (-0.1, 0.0), (0.1, -0.2)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(fractions):
    with pytest.raises(UserError, match="validation_fraction"):
        split_three(people(20), *fractions)


def test_a_column_of_splits_counts_instead_of_the_fractions():
    given = ["train", "test", "validation", "train"]
    records = [Scan(f"sub-{i}", None, None, {}, split=stated) for i, stated in enumerate(given)]
    found = split_three(records, 0.5, 0.4)
    assert {name: [r.name for r in rows] for name, rows in found.items()} == {
        "train": ["sub-0", "sub-3"],
        "validation": ["sub-2"],
        "test": ["sub-1"],
    }


@pytest.mark.parametrize(
    "rows, said",
    [
        ([("a", "train"), ("b", "validation"), ("b", "train")], "sub-b is in two splits, validation and train"),
        ([("a", "train"), ("b", None)], "sub-b_ses-1 has no split"),
        ([("a", "train"), ("b", "holdout")], "split 'holdout'"),
        ([("a", "train"), ("b", "test")], "no participant has 'validation'"),
    ],
)
def test_columns_of_splits_that_cannot_be_followed_are_refused(rows, said):
    records = [Scan(f"sub-{p}", f"ses-{i}", None, {}, split=stated) for i, (p, stated) in enumerate(rows)]
    with pytest.raises(UserError, match=said):
        split_three(records, 0.1)


def test_split_keeps_people_together_and_stays_when_others_join():
    train, validation = split(people(200), 0.1)
    assert not {r.participant_id for r in train} & {r.participant_id for r in validation}
    assert len(train) + len(validation) == 400
    assert 20 <= len(validation) <= 80
    more = split(people(400), 0.1)[1]
    assert {r.name for r in validation} == {r.name for r in more if int(r.participant_id[4:]) < 200}


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.99])
def test_split_leaves_neither_part_empty(fraction):
    train, validation = split(people(3), fraction)
    assert train and validation


def test_one_participant_cannot_be_split():
    with pytest.raises(UserError, match="at least two"):
        split(people(1), 0.5)
