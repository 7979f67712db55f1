"""The largest batch: a line through two compilations, and a search that compiles its answer."""

import pytest

from brainldm.planning.search import COMPILATIONS, largest_rows, search_rows


def test_the_largest_batch_lies_on_a_straight_line():
    assert largest_rows((1, 30.0), (2, 40.0), 65.0) == 4
    assert largest_rows((1, 30.0), (2, 40.0), 29.0) == 0
    assert largest_rows((1, 30.0), (2, 30.0), 29.0) == 0


@pytest.mark.parametrize("memory", [29, 30, 39, 40, 45, 129, 130, 999])
def test_the_search_finds_the_largest_batch_with_few_compilations(memory):
    rows, known = search_rows(lambda n: 20.0 + 10 * n, memory)
    assert rows == max(0, (memory - 20) // 10)
    assert rows == 0 or rows in known
    assert len(known) <= 4


def test_the_search_turns_back_where_memory_grows_faster_than_a_line():
    rows, known = search_rows(lambda n: 10.0 * n**1.3, 200.0)
    assert rows == max(n for n in range(1, 100) if 10.0 * n**1.3 <= 200.0)
    assert known[rows] <= 200 < known[rows + 1]


def test_the_search_does_without_figures_for_what_does_not_fit_and_ends():
    rows, known = search_rows(lambda n: None if n > 5 else float(n), 20.0)
    assert rows == 5 and len(known) <= COMPILATIONS
    assert search_rows(lambda n: None, 100.0)[0] == 0
