"""The layout of printed tables: which columns fit, and how wide they are.

rich is imported only to draw a table, so that `assay --help` stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def fitting_columns(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    kept: list[int],
    optional: Sequence[str],
    width: int,
) -> list[int]:
    """Returns the columns to print: without optional ones, in their order, until the rest fits.

    Cells are broken between words only if that is not enough.

    Args:
        columns: All columns; those whose name starts with ">" are aligned to the right.
        kept: The numbers of the columns that may be printed.
        optional: The names of those that may be left out.
        width: Characters in a line.
    """
    chosen = kept
    for least in (_unbroken_width, _least_width):
        chosen = kept
        for name in optional:
            if _sum(least, columns, rows, chosen) > width:
                chosen = [index for index in chosen if columns[index] != name]
        if _sum(least, columns, rows, chosen) <= width:
            break
    return chosen


def least_width(columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Returns how many characters a table needs so that no word and no number is broken."""
    return _sum(_least_width, columns, rows, kept)


def file_width(columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Returns how many characters a table in a file needs: headings of numbers are not broken."""
    whole = {column: _longest([column.lstrip(">")]) for column in columns if column[:1] == ">"}
    return _sum(
        lambda column, cells: max(_least_width(column, cells), whole.get(column, 0)),
        columns,
        rows,
        kept,
    )


def _sum(
    needed: Callable[[str, Sequence[str]], int],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    kept: Sequence[int],
) -> int:
    """Returns the width of a table whose columns have the widths that they need."""
    around = 4 + 3 * (len(kept) - 1)  # the space around and between columns
    return around + sum(needed(columns[index], [row[index] for row in rows]) for index in kept)


def _unbroken_width(column: str, cells: Sequence[str]) -> int:
    """Returns the width at which only the heading is broken between words."""
    return _longest([*column.lstrip(">").split(), *cells])


def _least_width(column: str, cells: Sequence[str]) -> int:
    """Returns the width at which texts are broken between words, but no number."""
    if column.startswith(">"):
        return _unbroken_width(column, cells)
    return _longest([word for part in (column, *cells) for word in part.split()])


def _longest(parts: Sequence[str]) -> int:
    from rich.cells import cell_len  # a Chinese character takes the width of two

    return max(map(cell_len, parts), default=0)


def draw(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], spare: int) -> Table:
    """Returns a table whose columns share the characters that are not needed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(title)
    table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        least = _least_width(column, cells)
        more = min(spare, _longest([column.lstrip(">"), *cells]) - least)
        spare -= more
        justify: Any = "right" if column.startswith(">") else "left"
        table.add_column(column.lstrip(">"), justify=justify, width=least + more, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    return table


def _style(cell: str) -> str:
    if cell.startswith("pass"):
        return "green"
    if cell.startswith(("mismatch", "vacuous", "crashed", "failed")):
        return "bold red"
    return "yellow" if cell.startswith(("not run", "unstable")) else ""
