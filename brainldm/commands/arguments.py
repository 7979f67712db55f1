"""Types of arguments that several commands share. argparse turns their ValueError into a message and exit code 2."""

from __future__ import annotations

import argparse

MAX_SEED = 2**63 - 1


def seed(text: str) -> int:
    """A seed: a whole number from 0 to 2**63 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 to 2**63 - 1 is wanted")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least 1 is wanted")
    return value


def interval(text: str) -> tuple[float, float]:
    """Two numbers LOW:HIGH."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: two numbers LOW:HIGH are wanted, such as 0.2:0.8") from None
    return low, high
