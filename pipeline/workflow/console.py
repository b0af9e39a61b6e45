"""Terminal output: results on stdout, everything else on stderr, one JSON document on demand.

What libraries print is discarded while a command runs; see `own_lines_only`.

rich is imported only to draw a table or a bar, so that `assay --help` stays instant.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

# rich assumes 80 columns where there is no terminal, too few for our tables.
_PLAIN_WIDTH = 140
# All but tabs and line feeds: control characters, other line breaks, what is invisible or changes
# the direction of text, and halves of surrogate pairs.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)

# If set, libraries print where they like.
LIBRARY_OUTPUT = "ASSAY_LIBRARY_OUTPUT"
_DESCRIPTORS = {"stdout": 1, "stderr": 2}


@dataclass
class Output:
    """How this command prints; the command line sets it once.

    Attributes:
        json: Print one JSON document on stdout, and results on stderr.
        quiet: Print errors and results only.
        explain: Print below each table what its terms mean.
        listener: Receives the progress lines; nothing is printed.
        bar: Replaces `bar`, in a process that draws nothing itself.
        streams: Where our own lines go instead of `sys.stdout` and `sys.stderr`, by these names.
    """

    json: bool = False
    quiet: bool = False
    explain: bool = False
    listener: Callable[[str], None] | None = None
    bar: Callable[[str, float], AbstractContextManager[Bar]] | None = None
    streams: dict[str, TextIO] = field(default_factory=dict)


settings = Output()
_held: list[Callable[[], None]] | None = None
_live: Any = None  # the progress that a terminal shows, from rich


def _stdout() -> TextIO:
    return settings.streams.get("stdout", sys.stdout)


def _stderr() -> TextIO:
    return settings.streams.get("stderr", sys.stderr)


class _Log(logging.Handler):
    """Prints what our own packages log as lines of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def own_log() -> Iterator[None]:
    """Prints what `engines` logs, whatever libraries do to the other loggers."""
    logger, handler = logging.getLogger("engines"), _Log()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def own_lines_only() -> Iterator[None]:
    """Discards what libraries print, from Python or native code, while the block runs.

    They print where they like if LIBRARY_OUTPUT is set. A stream that is not the process's own, as
    in a test, is left as it is.
    """
    with own_log(), ExitStack() as stack:
        if LIBRARY_OUTPUT not in os.environ:
            for name in _DESCRIPTORS:
                stack.enter_context(_own_stream(name))
        yield


@contextmanager
def _own_stream(name: str) -> Iterator[None]:
    theirs = getattr(sys, name)
    if theirs is None or theirs is not getattr(sys, f"__{name}__"):
        yield
        return
    theirs.flush()
    descriptor = _DESCRIPTORS[name]
    kept = os.dup(descriptor)
    ours = os.fdopen(kept, "w", encoding=theirs.encoding, errors=theirs.errors, buffering=1)
    with ours, Path(os.devnull).open("wb") as discarded:
        os.dup2(discarded.fileno(), descriptor)
        settings.streams[name] = ours
        try:
            yield
        finally:
            del settings.streams[name]
            theirs.flush()
            os.dup2(kept, descriptor)


def _plain(text: str) -> str:
    """Returns a text whose control characters are escaped.

    Names in files of others may hold any, which would change the terminal or hide what is printed.
    Lines after the first are indented, so that none can look like a line of ours.
    """
    escaped = _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return escaped.replace("\n", "\n  ")


def _in_one_line(text: str) -> str:
    return _plain(text.replace("\n", "\\n").replace("\t", "\\t"))


def say(text: str) -> None:
    """Prints a line of progress to stderr, unless quiet."""
    if settings.listener is not None:
        settings.listener(text)
    elif _live is not None:  # above the bar, which a plain line would tear
        _live.console.print(_plain(text), highlight=False, markup=False, soft_wrap=True)
    elif not settings.quiet:
        print(_plain(text), file=_stderr(), flush=True)


def result(text: str) -> None:
    """Prints a line that is a result: to stdout, or to stderr if stdout is for JSON."""
    if settings.listener is not None or _hold(partial(result, text)):
        return
    print(_plain(text), file=_stderr() if settings.json else _stdout(), flush=True)


def _hold(printing: Callable[[], None]) -> bool:
    if _held is not None:
        _held.append(printing)
    return _held is not None


@contextmanager
def only_on_failure() -> Iterator[None]:
    """Prints the block's results only if it raises, and discards them otherwise."""
    global _held  # noqa: PLW0603 - one terminal, one state
    kept: list[Callable[[], None]] = []
    _held = kept
    try:
        yield
    except BaseException:
        _held = None
        for printing in kept:
            printing()
        raise
    finally:
        _held = None


@contextmanager
def redirected(listener: Callable[[str], None] | None = None) -> Iterator[None]:
    """Sends progress lines to `listener`, if given, and prints nothing: for the Python API."""
    before, settings.listener = settings.listener, listener or (lambda _text: None)
    try:
        yield
    finally:
        settings.listener = before


def document(content: Any) -> None:
    """Prints the JSON document if `--json` was given; NaN and infinities become null."""
    if settings.json:
        text = json.dumps(_finite(content), indent=2, sort_keys=True, allow_nan=False)
        print(text, file=_stdout(), flush=True)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def error(message: str, hint: str = "") -> None:
    """Prints an error and what to do about it."""
    print(f"error: {_plain(message)}", file=_stderr())
    if hint:
        print(f"hint: {_plain(hint)}", file=_stderr())


def can_ask() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin is not None and sys.stdin.isatty() and _stderr().isatty()


def confirm(lines: Sequence[str], question: str) -> bool:
    """Prints lines to the terminal and asks a question; returns whether the answer is yes."""
    for line in lines:
        print(_in_one_line(line), file=_stderr())
    print(f"{question} [y/N]: ", end="", file=_stderr(), flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    optional: Sequence[str] = (),
) -> None:
    """Prints a table; columns whose name starts with ">" are aligned to the right.

    If it is wider than the terminal, optional columns are left out; if it still is, each row is
    printed as a block of lines.

    Args:
        optional: The columns that may be left out, in this order, by their names.
    """
    rows = [[_in_one_line(cell) for cell in row] for row in rows]
    if settings.listener is not None or _hold(partial(table, title, columns, rows, optional)):
        return
    if not rows:
        result(f"{title}: none")
        return
    from rich.console import Console

    from pipeline.workflow.table_layout import draw, file_width, fitting_columns, least_width

    stream = _stderr() if settings.json else _stdout()
    # A column that says nothing is not printed.
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    width = None
    if not stream.isatty():  # a file gets all columns, however wide
        width, optional = max(_PLAIN_WIDTH, file_width(columns, rows, kept)), ()
    console = Console(file=stream, width=width)
    kept = fitting_columns(columns, rows, kept, optional, console.width)
    chosen = [columns[index] for index in kept]
    cells = [[row[index] for index in kept] for row in rows]
    if least_width(columns, rows, kept) > console.width:
        kept, chosen = [*range(len(columns))], [*columns]
        print(_in_one_line(title), file=stream)
        for row in rows:
            _print_block(stream, chosen, row)
    else:
        spare = console.width - least_width(columns, rows, kept)
        console.print(draw(_in_one_line(title), chosen, cells, spare))
    left_out = [
        name.lstrip(">")
        for index, name in enumerate(columns)
        if index not in kept and any(row[index] for row in rows)
    ]
    if left_out:
        result(
            f"left out, as the terminal is narrow: {', '.join(left_out)}; a wider one or a pipe"
            " shows all"
        )
    if settings.explain:
        _explain([*chosen, *(word for row in cells for cell in row for word in cell.split())])


def _print_block(stream: TextIO, columns: Sequence[str], row: Sequence[str]) -> None:
    for column, cell in zip(columns, row, strict=True):
        if cell:
            name = column.lstrip(">")
            print(f"{name}: {cell}" if name else cell, file=stream)
    print(file=stream, flush=True)


def _explain(words: Sequence[str]) -> None:
    """Prints what each term in a table means, if it is one that needs to be explained."""
    from pipeline.workflow.terms import TERMS

    seen = {word.lstrip(">").rstrip("*") for word in words}
    for term, meaning in TERMS.items():
        if term in seen:
            result(f"{term}: {meaning}")


class Bar:
    """A progress bar on a terminal; plain lines elsewhere."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    @property
    def is_drawn(self) -> bool:
        """Whether there is a terminal that shows it."""
        return self._progress is not None

    def restart(self, total: float, text: str) -> None:
        """Begins again at 0; a total of 0 means that it is not known."""
        if self._progress is not None:
            shown = {"total": total or None, "text": _in_one_line(text)}
            self._progress.reset(self._task, completed=0, **shown)

    def advance(self, amount: float, text: str = "") -> None:
        """Moves the bar on by `amount` and shows `text` after it."""
        if self._progress is not None:
            self._progress.update(self._task, advance=amount, text=_in_one_line(text))

    def line(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        say(text)


@contextmanager
def bar(description: str, total: float) -> Iterator[Bar]:
    """Shows the progress of a long step and the time left; `total` is in units of `advance`."""
    if settings.bar is not None:
        with settings.bar(description, total) as elsewhere:
            yield elsewhere
        return
    if settings.quiet or settings.listener is not None or not _stderr().isatty():
        yield Bar(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    global _live  # noqa: PLW0603 - one terminal, one state
    with Progress(*columns, console=Console(file=_stderr()), transient=True) as progress:
        before, _live = _live, progress
        try:
            yield Bar(progress, progress.add_task(_in_one_line(description), total=total, text=""))
        finally:
            _live = before
