"""What a page is made of: sections with sentences, figures and tables, in any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        shade: How dark its background is, from 0 to 1.
        status: "good" or "bad" for a cell that is to stand out.
        code: Whether it is a digest, a path or a command.
    """

    text: str
    shade: float = 0.0
    status: str = ""
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table, with numbers aligned to the right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        note: A sentence below the table.
        folded: Whether a screen shows it only when asked; paper always does.
        dense: Whether its cells have less space around them.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        title: What it shows.
        text: What a reader who does not see it has to know.
        svg: The drawing, as an `<svg>` element.
    """

    title: str
    text: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: Its identifier in links.
        sentences: Paragraphs at the top; commands stand between backquotes.
        remarks: A list below the tables, in the same form.
    """

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    *,
    note: str = "",
    folded: bool = False,
    dense: bool = False,
) -> Table:
    """Makes a table without the columns in which every cell is empty.

    Args:
        columns: Titles; those that begin with ">" are of columns of numbers.

    Raises:
        TypeError: A cell is not text, since a file has another form than expected.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(columns)) if not cells or any(row[i].text for row in cells)]
    return Table(
        title=title,
        columns=tuple(Column(columns[i].lstrip(">"), columns[i].startswith(">")) for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in cells),
        note=note,
        folded=folded,
        dense=dense,
    )


def _cell(cell: Cell | str) -> Cell:
    whole = cell if isinstance(cell, Cell) else Cell(cell, status=_status(cell))
    if type(whole.text) is not str:
        raise TypeError(f"{whole.text!r:.40} is not text")
    return whole


def _status(text: str) -> str:
    """Returns how a verdict stands out; "" for any other text."""
    if text == "pass":
        return "good"
    return "bad" if text in ("mismatch", "vacuous", "crashed", "failed") else ""
