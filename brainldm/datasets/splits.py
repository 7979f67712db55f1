"""Which participants train, validate and test: the same ones after others have joined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from brainldm.datasets.bids import Record
from brainldm.runtime.errors import UserError

SPLITS = ("train", "validation", "test")


def split(
    records: Sequence[Record], validation_fraction: float, test_fraction: float = 0.0
) -> tuple[list[Record], list[Record]]:
    """Training and validation records of `split_three`; the test records are left out."""
    sides = split_three(records, validation_fraction, test_fraction)
    return sides["train"], sides["validation"]


def split_three(
    records: Sequence[Record], validation_fraction: float, test_fraction: float = 0.0
) -> dict[str, list[Record]]:
    """Records by side, "train", "validation" and "test". All scans of a participant go to the same side.

    Where records say their `split` (a column of participants.tsv), that is taken. Otherwise the side follows from a
    hash of the participant's id, so it does not change when others are added: the smallest hashes validate, the
    largest test, so that one fraction does not move the other side. With few participants the smallest hash alone is
    held out, so that neither training nor validation is empty.
    Raises UserError when fewer than two participants are there, fractions leave no room for training, or the column
    has gaps, puts a participant on two sides, or leaves training or validation empty.
    """
    people = {record.participant_id for record in records}
    if len(people) < 2:
        raise UserError(f"The dataset has {len(people)} participant(s); training and validation need at least two.")
    stated = any(getattr(record, "split", None) for record in records)
    side = _stated_sides(records) if stated else _hashed_sides(people, validation_fraction, test_fraction)
    return {name: [record for record in records if side[record.participant_id] == name] for name in SPLITS}


def _stated_sides(records: Sequence[Record]) -> dict[str, str]:
    """The side of each participant by the column `split`."""
    side: dict[str, str] = {}
    for record in records:
        if record.split not in SPLITS:
            said = f"the split {record.split!r}" if record.split else "no split"
            raise UserError(
                f"participants.tsv: {record.name} has {said}, while others have one. Write {', '.join(SPLITS)} in "
                "every row of the column split, or remove the column to have people shared out by their ids."
            )
        first = side.setdefault(record.participant_id, record.split)
        if first != record.split:
            raise UserError(
                f"participants.tsv: {record.participant_id} is in two splits, {first} and {record.split}. What is "
                "held out would have been trained on; put all scans of a participant into one."
            )
    for name in SPLITS[:2]:
        if name not in side.values():
            raise UserError(f"participants.tsv: no participant has {name!r} in the column split, and it is needed.")
    return side


def _hashed_sides(people: set[str], validation_fraction: float, test_fraction: float) -> dict[str, str]:
    """The side of each participant by a hash of the id."""
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise UserError(
            f"config.data.validation_fraction {validation_fraction:g} and test_fraction {test_fraction:g} leave "
            "nothing to train on. Their sum is below 1."
        )
    place = {p: int(hashlib.sha256(p.encode()).hexdigest()[:12], 16) / 16**12 for p in people}
    test = {p for p in people if place[p] >= 1 - test_fraction}
    rest = people - test
    if len(rest) < 2:
        raise UserError(
            f"config.data.test_fraction {test_fraction:g} leaves {len(rest)} of {len(people)} participants to train "
            "and to validate. Lower it, or write a column split into participants.tsv."
        )
    held_out = {p for p in rest if place[p] < validation_fraction} or {min(rest, key=place.get)}
    if held_out == rest:
        held_out.discard(max(rest, key=place.get))
    return {p: "test" if p in test else "validation" if p in held_out else "train" for p in people}
