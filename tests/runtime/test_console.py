"""What a person sees while something runs: no time left before it can be known."""

import pytest

from brainldm.runtime import console


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: clock(seconds)."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def lines(clock, capsys, *calls, warm_up=0):
    clock(0.0)
    with console.Progress("training", 1000, warm_up=warm_up) as progress:
        for seconds, done in calls:
            clock(seconds)
            progress(done, "note")
        return capsys.readouterr().err.splitlines()


def test_the_time_left_follows_from_the_time_so_far(clock, capsys):
    assert lines(clock, capsys, (20.0, 100)) == ["training: 100/1000, 3 min 00 s left, note"]


def test_steps_that_wait_for_the_compiler_do_not_count_for_the_time_left(clock, capsys):
    said = lines(clock, capsys, (40.0, 1), (60.0, 2), (72.0, 8), warm_up=2)
    assert said == ["training: 1/1000, note", "training: 2/1000, note", "training: 8/1000, 33 min 04 s left, note"]
