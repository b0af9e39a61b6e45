"""Several sessions of one engine, since one alone may be quicker or slower by an accident."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

from engines import hardware
from engines.contract import Session
from engines.errors import DeployError
from pipeline.benchmarking import intervals
from pipeline.benchmarking.clock import SESSIONS

# Seconds that opening more of them may take in all, and the part of the free memory.
_SECONDS = 2.0
_MEMORY = 0.25


def more(first: Session, opens: Callable[[], Session], stack: ExitStack) -> list[Session]:
    """Opens more sessions, for `clock.Candidate.others`.

    Args:
        opens: Opens one.
        stack: Closes the first one and all others at its end.

    Returns:
        As many as the clock uses; none if they take too long or too much memory, or on a GPU,
        whose memory other commands have to fit into as well.
    """
    stack.enter_context(closing(first))
    if first.device != "cpu":
        return []
    opened: list[Session] = []
    start, held = time.perf_counter(), hardware.resident_memory(os.getpid())
    room = hardware.free_memory() * _MEMORY
    try:
        while 1 + len(opened) < SESSIONS:
            opened.append(opens())
            left = SESSIONS - 1 - len(opened)
            taken = time.perf_counter() - start, hardware.resident_memory(os.getpid()) - held
            expected = [part * (1 + left / len(opened)) for part in taken]
            if (expected[0] > _SECONDS or expected[1] > room) and left:
                break
    except DeployError:
        pass  # the first one can be timed all the same
    if 1 + len(opened) < intervals.FEWEST:
        for session in opened:
            session.close()
        return []
    for session in opened:
        stack.enter_context(closing(session))
    return opened
