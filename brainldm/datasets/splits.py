"""Which participants train, validate and test: the same ones after others have joined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from brainldm.datasets.scans import Scan
from brainldm.runtime.errors import UserError

SPLITS = ("train", "validation", "test")


def split(
    scans: Sequence[Scan], validation_fraction: float, test_fraction: float = 0.0
) -> tuple[list[Scan], list[Scan]]:
    """Training and validation scans of `split_three`; the test scans are left out."""
    splits = split_three(scans, validation_fraction, test_fraction)
    return splits["train"], splits["validation"]


def split_three(scans: Sequence[Scan], validation_fraction: float, test_fraction: float = 0.0) -> dict[str, list[Scan]]:
    """Scans by split, "train", "validation" and "test". All scans of a participant go to the same split.

    Where scans say their `split` (a column of participants.tsv), that is taken. Otherwise the split follows from a
    hash of the participant's id, so it does not change when others are added: the smallest hashes validate, the
    largest test, so that one fraction does not move the other split. With few participants the smallest hash alone is
    held out, so that neither training nor validation is empty.
    Raises UserError when fewer than two participants are there, fractions leave no room for training, or the column
    has gaps, puts a participant into two splits, or leaves training or validation empty.
    """
    people = {scan.participant_id for scan in scans}
    if len(people) < 2:
        raise UserError(f"The dataset has {len(people)} participant(s); training and validation need at least two.")
    stated = any(getattr(scan, "split", None) for scan in scans)
    split_of = _stated_splits(scans) if stated else _hashed_splits(people, validation_fraction, test_fraction)
    return {name: [scan for scan in scans if split_of[scan.participant_id] == name] for name in SPLITS}


def _stated_splits(scans: Sequence[Scan]) -> dict[str, str]:
    """The split of each participant by the column `split`."""
    split_of: dict[str, str] = {}
    for scan in scans:
        if scan.split not in SPLITS:
            said = f"the split {scan.split!r}" if scan.split else "no split"
            raise UserError(
                f"participants.tsv: {scan.name} has {said}, while others have one. Write {', '.join(SPLITS)} in "
                "every row of the column split, or remove the column to have participants split by their ids."
            )
        first = split_of.setdefault(scan.participant_id, scan.split)
        if first != scan.split:
            raise UserError(
                f"participants.tsv: {scan.participant_id} is in two splits, {first} and {scan.split}. What is "
                "held out would have been trained on; put all scans of a participant into one."
            )
    for name in SPLITS[:2]:
        if name not in split_of.values():
            raise UserError(f"participants.tsv: no participant has {name!r} in the column split, and it is needed.")
    return split_of


def _hashed_splits(people: set[str], validation_fraction: float, test_fraction: float) -> dict[str, str]:
    """The split of each participant by a hash of the id."""
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise UserError(
            f"config.data.validation_fraction {validation_fraction:g} and test_fraction {test_fraction:g} leave "
            "nothing to train on. Their sum is below 1."
        )
    position = {p: int(hashlib.sha256(p.encode()).hexdigest()[:12], 16) / 16**12 for p in people}
    test = {p for p in people if position[p] >= 1 - test_fraction}
    rest = people - test
    if len(rest) < 2:
        raise UserError(
            f"config.data.test_fraction {test_fraction:g} leaves {len(rest)} of {len(people)} participants to train "
            "and to validate. Lower it, or write a column split into participants.tsv."
        )
    held_out = {p for p in rest if position[p] < validation_fraction} or {min(rest, key=position.get)}
    if held_out == rest:
        held_out.discard(max(rest, key=position.get))
    return {p: "test" if p in test else "validation" if p in held_out else "train" for p in people}
