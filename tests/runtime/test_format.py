"""Quantities as text."""

import pytest

from brainldm.runtime.format import (
    format_bytes,
    format_count,
    format_duration,
    format_interval,
    format_names,
    format_number,
    format_shape,
    round_significant,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (20 * 2**20, "20 MiB"),
        (999.6 * 2**20, "1000 MiB"),
        (79.6 * 2**30, "79.6 GiB"),
        (3 * 2**40, "3 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_bytes_have_three_figures_and_a_binary_unit(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text", "fine"),
    [
        (0.012, "0 s", "12 ms"),
        (0.12345, "0 s", "123 ms"),
        (7.249, "7 s", "7.25 s"),
        (59.6, "1 min 00 s", "1 min 00 s"),
        (130, "2 min 10 s", "2 min 10 s"),
        (3725, "1 h 02 min", "1 h 02 min"),
        (200_000, "55 h 33 min", "55 h 33 min"),
    ],
)
def test_durations_are_whole_seconds_unless_asked_finer(seconds, text, fine):
    assert format_duration(seconds) == text
    assert format_duration(seconds, fine=True) == fine


def test_a_figure_that_is_not_determined_is_said_to_be_so():
    assert format_number(0.97234) == "0.972" and format_number(0.97234, ".4f") == "0.9723"
    assert format_number(None) == "not determined" and format_number(None, missing="none") == "none"
    assert format_interval(0.97, 0.951, 0.99) == "0.97 [0.951, 0.99]"
    assert format_interval(0.97, None, None) == "0.97"
    assert format_interval(None, None, None, missing="none") == "none"


def test_shapes_and_spacings_are_joined_by_x():
    assert format_shape((40, 56, 40)) == "40x56x40"
    assert format_shape((0.7, 1.2, 5.0)) == "0.7x1.2x5"


def test_long_lists_say_how_many_are_not_shown():
    names = ["a", "b", "c", "d", "e"]
    assert format_names(names[:3]) == "a, b, c"
    assert format_names(names) == "a, b, c and 2 more"
    assert format_names(names, 1, "; ") == "a and 4 more"
    assert format_names([]) == ""


def test_nouns_follow_their_number():
    assert (format_count(1, "scan"), format_count(2, "scan"), format_count(0, "scan")) == (
        "1 scan",
        "2 scans",
        "0 scans",
    )
    assert format_count(2, "scan has", "scans have") == "2 scans have"


def test_rounding_keeps_significant_figures():
    assert round_significant(123.456789) == 123.457
    assert round_significant(0.000123456789) == 0.000123457
    assert round_significant(987.0, 2) == 990.0
