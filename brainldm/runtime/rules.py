"""What a value may be, in code and in words: the type, range and size of what people and files say."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brainldm.runtime.errors import UserError

_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class Rule:
    """`wanted` says in words what `allows` accepts."""

    wanted: str
    allows: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number, and not True or False."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold, and not True or False."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_list(value: Any) -> bool:
    """Whether `value` is a tuple or a list."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def shown(value: Any) -> str:
    """`value` as a message shows it: as Python writes it, the middle of a long one left out."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested or as long a number as nothing of ours
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 4 :]}"


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low` to `high`, both allowed."""
    top = f" to {high}" if high is not None else " on"
    return Rule(f"a whole number from {low}{top}", lambda v: is_whole(v) and v >= low and (high is None or v <= high))


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number from `low` to `high`; `above` leaves out `low` itself, and `below` leaves out `high`."""
    words = [f"above {low:g}" if above else f"of at least {low:g}"] if low > -math.inf else []
    words += [f"{'below' if below else 'at most'} {high:g}"] if high < math.inf else []
    return Rule(
        f"a number {' and '.join(words)}".rstrip() if words else "a finite number",
        lambda v: is_number(v) and (v > low if above else v >= low) and (v < high if below else v <= high),
    )


def one_of(*choices: Any) -> Rule:
    """One of a few texts or numbers."""
    return Rule(
        " or ".join(map(str, choices)),
        lambda v: isinstance(v, str | numbers.Real) and not isinstance(v, bool) and v in choices,
    )


def list_of(rule: Rule, at_least: int = 0, at_most: int | None = None) -> Rule:
    """A tuple or list of `at_least` to `at_most` values that `rule` allows."""
    count = f" of at least {at_least}" if at_least else ""
    count = f" of {at_least} to {at_most}" if at_most is not None else count
    count = f" of {at_least}" if at_least == at_most else count
    return Rule(
        f"a tuple{count}, each {rule.wanted}",
        lambda v: (
            is_list(v) and len(v) >= at_least and (at_most is None or len(v) <= at_most) and all(map(rule.allows, v))
        ),
    )


def either(*rules: Rule) -> Rule:
    """What one of `rules` allows."""
    return Rule(", or ".join(rule.wanted for rule in rules), lambda v: any(rule.allows(v) for rule in rules))


def rises(value: Sequence[float]) -> bool:
    """Whether `value` are two numbers, the lower one first."""
    return len(value) == 2 and value[0] < value[1]


BOOL = Rule("True or False", lambda v: isinstance(v, bool))
TEXT = Rule("a text", lambda v: isinstance(v, str))
PATH = Rule("a path", lambda v: isinstance(v, str) and "\0" not in v)
TEXTS = Rule("a text, or a tuple of texts", lambda v: TEXT.allows(v) or list_of(TEXT).allows(v))
FRACTION = number(0, 1)
NOT_ALL = number(0, 1, below=True)
RATE = number(0, 1, above=True)
COUNT = whole(0, 10**9)
WEIGHT = number(0, 1e6)  # what float32 computes with, squares of it too
RANGE = Rule(
    "a pair of numbers (low, high) with low below high", lambda v: list_of(number(-1e9, 1e9)).allows(v) and rises(v)
)
REMAT = Rule("True, False, or a tuple of levels such as (0, 1)", lambda v: BOOL.allows(v) or list_of(COUNT).allows(v))

# What networks may be. Far above any that was ever trained on brains, and low enough that a description of one costs
# seconds and no memory worth a word.
MAX_BLOCKS = 32
WIDTH = whole(1, 16384)
WIDTHS = list_of(WIDTH, 1, 10)
BLOCKS = whole(1, MAX_BLOCKS)


def check(where: str, values: Any, rules: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> None:
    """Raise UserError for the first of `values`, by key, that is absent, unknown or not what its rule allows.

    where: what holds the values, for the message.
    """
    optional = optional or {}
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}; a table of names and values is wanted.")
    for key in values:
        if key not in rules and key not in optional:
            raise UserError(f"{where} has {shown(key)}, which this version does not know.")
    for key in rules:
        if key not in values:
            raise UserError(f"{where} has no {key}.")
    for key, value in values.items():
        rule = rules.get(key) or optional[key]
        if not rule.allows(value):
            raise UserError(f"{where}: {key} is {shown(value)}; {rule.wanted} is wanted.")
