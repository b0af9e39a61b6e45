"""Shows which phase a long stage is in: a bar on a terminal, and lines elsewhere.

The stage shows its phases with `showing`; the functions that it calls name them. Without a stage
that shows them, naming a phase does nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.workflow import console

# Outside a terminal, a phase gets its first line when it has taken this long, in seconds,
# and a further line each time its duration has doubled.
_FIRST_LINE = 5.0

_current: _Phases | None = None


class _Phases:
    """The phases of one stage.

    Attributes:
        text: The phase that runs.
    """

    def __init__(self, stage: str, bar: console.Bar) -> None:
        self._stage = stage
        self._bar = bar
        self._changed = threading.Condition()
        self._ended = False
        self.start("", 0)

    def start(self, text: str, total: float) -> None:
        with self._changed:
            self.text, self._total, self._done = text, total, 0.0
            self._began = time.monotonic()
            self._changed.notify()
        self._bar.restart(total, text)

    def advance(self, amount: float) -> None:
        self._done += amount
        self._bar.advance(amount, self.text)

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def print_lines(self) -> None:
        """Prints the lines until the end; runs in a thread of its own."""
        with self._changed:
            while not self._ended:
                began, wait = self._began, _FIRST_LINE
                while not self._ended and began == self._began:
                    if not self._changed.wait(max(0.0, began + wait - time.monotonic())):
                        console.say(f"{self._stage}: {self._described(wait)}")
                        wait *= 2

    def _described(self, seconds: float) -> str:
        part = f" {self._done / self._total:.0%}," if self._total else ""
        return f"{self.text},{part} {seconds:.0f} s"


@contextmanager
def showing(stage: str) -> Iterator[None]:
    """Shows the phases that are named while the block runs."""
    global _current  # noqa: PLW0603 - one terminal, one state
    with console.bar(stage, 0) as bar:
        phases = _current = _Phases(stage, bar)
        printer = threading.Thread(target=phases.print_lines, name="phases", daemon=True)
        if not bar.is_drawn:
            printer.start()
        try:
            yield
        finally:
            _current = None
            phases.end()
            if printer.ident is not None:
                printer.join()


def start(text: str, total: float = 0) -> None:
    """Names the phase that begins; `total` is in units of `advance`, or 0 if it is not known."""
    if _current is not None:
        _current.start(text, total)


def advance(amount: float = 1) -> None:
    """Notes that a part of the phase is done."""
    if _current is not None:
        _current.advance(amount)
