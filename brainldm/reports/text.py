"""Tables as plain text: aligned columns without lines and colour, for a terminal or a file."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 120
"""Columns of text where there is no terminal."""


def text_table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), indent: int = 2, width: int = 0) -> list[str]:
    """Lines of a table whose cells are taken as they are (no markup).

    Where a row is wider than `width`, the cells of its widest columns (never of the first) take several lines. `width`
    is by default that of the terminal, and WIDTH where standard output is none, so that a file does not depend on a
    window.
    """
    rows = [list(row) for row in rows]
    if not rows and not head:
        return []
    count = len(head or rows[0])
    table = Table(box=None, show_header=bool(head), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for number in range(count):
        table.add_column(Text(head[number]) if head else "", no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = (width or _width()) - indent
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return [" " * indent + line.rstrip() for line in file.getvalue().splitlines()]


def _width() -> int:
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
