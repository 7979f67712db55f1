"""Tables as plain text."""

import io

from brainldm.reports.text import WIDTH, text_table


def test_columns_are_aligned_under_their_heads():
    rows = [("age *", "12", "44 to 82 years"), ("site", "3", "")]
    assert text_table(rows, ("column", "n", "values")) == [
        "  column  n   values",
        "  age *   12  44 to 82 years",
        "  site    3",
    ]
    assert text_table(rows, indent=0)[0] == "age *  12  44 to 82 years"
    assert text_table([]) == []


def test_long_cells_wrap_in_their_own_column_and_lose_nothing():
    words = [f"word{number}" for number in range(40)]
    lines = text_table([("geometry", " ".join(words)), ("other", "x")], width=60)
    assert max(map(len, lines)) <= 60 and len(lines) > 5
    assert all(line.startswith(" " * 12) for line in lines[1:-1])
    assert " ".join(lines[:-1]).split()[1:] == words


def test_cells_are_no_markup_and_have_no_colour():
    assert text_table([("[bold]a[/bold]", ":smile:", "\\[b]")]) == ["  [bold]a[/bold]  :smile:  \\[b]"]


def test_a_file_does_not_depend_on_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    (line,) = text_table([("a", "b" * 100)])
    assert len(line) == 105 < WIDTH


def test_a_terminal_gives_its_own_width(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr("sys.stdout", Terminal())
    lines = text_table([("a", "b" * 100)])
    assert max(map(len, lines)) <= 30 and sum(line.count("b") for line in lines) == 100
