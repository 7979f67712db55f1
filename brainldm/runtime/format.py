"""Quantities and lists as text for a person: bytes, durations, numbers, shapes, counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NAMES_SHOWN = 3


def format_bytes(size: float) -> str:
    """Three figures in binary units: 1536 -> "1.5 KiB", 512 -> "512 bytes"."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}" if size < 999.5 and unit != "bytes" else f"{size:.0f} {unit}"


def format_duration(seconds: float, fine: bool = False) -> str:
    """3725 -> "1 h 02 min", 130 -> "2 min 10 s", 7.2 -> "7 s". With `fine`, three figures below ten seconds: 0.012 ->
    "12 ms", 7.2 -> "7.2 s"."""
    if fine and seconds < 10:
        return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    seconds = int(round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def format_number(value: float | None, style: str = ".3g", missing: str = "not determined") -> str:
    """`value` in a format style, or `missing` for None: what JSON holds where a figure is not determined."""
    return missing if value is None else format(value, style)


def format_interval(value: float | None, low: float | None, high: float | None, missing: str = "not determined") -> str:
    """A figure and its interval, "0.97 [0.95, 0.99]"; without the brackets where the interval is not determined."""
    if value is None or low is None or high is None:
        return format_number(value, missing=missing)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def format_shape(sides: Iterable[float]) -> str:
    """(40, 56, 40) -> "40x56x40"; sides in mm likewise, (0.7, 1.2, 5.0) -> "0.7x1.2x5"."""
    return "x".join(f"{side:g}" for side in sides)


def format_names(names: Sequence[str], shown: int = NAMES_SHOWN, separator: str = ", ") -> str:
    """The first `shown` of `names` and how many more: "a, b, c and 4 more"."""
    more = len(names) - shown
    return separator.join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def format_count(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun: "1 scan", "2 scans"; `many` where the plural is not `one` and s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def round_significant(value: float, figures: int = 6) -> float:
    """`value` to so many significant figures; six are what float32 holds."""
    return float(f"{value:.{figures}g}")
