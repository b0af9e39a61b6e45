"""What one inference costs: CPU time of all threads, and energy."""

from __future__ import annotations

import time
from dataclasses import dataclass

from engines import energy
from engines.contract import Feeds, Session
from engines.errors import NotAvailableError

# Counters of energy advance each millisecond, and the clock of a process each 10 ms on old kernels.
_SECONDS = 0.5
# Before that, since some libraries choose kernels in their first runs.
_WARM_UP_SECONDS = 0.2


@dataclass(frozen=True)
class Cost:
    """The cost of one inference, from arrays on the host to arrays on the host.

    Attributes:
        inferences: How many were run.
        wall_seconds: How long each took.
        cpu_seconds: CPU time of all threads of this process for each, waiting by spinning included.
        joules: Energy for each, of all that the CPUs' packages or the GPU did meanwhile; None if
            it is not known.
        no_energy: Why the energy is not known, or "".
    """

    inferences: int
    wall_seconds: float
    cpu_seconds: float
    joules: float | None
    no_energy: str


def cost(session: Session, feeds: Feeds, budget: float = _SECONDS) -> Cost:
    """Runs a session for half a second after a warm-up, or once if that takes longer.

    Args:
        budget: Seconds for it, if these are fewer.
    """
    _run(session, feeds, _WARM_UP_SECONDS)
    meter, no_energy = None, ""
    try:
        meter = energy.meter(session.device)
    except NotAvailableError as error:
        no_energy = error.message
    cpu = time.process_time()
    count, seconds = _run(session, feeds, min(budget, _SECONDS))
    cpu_seconds = time.process_time() - cpu
    joules = None if meter is None else meter() / count
    return Cost(count, seconds / count, cpu_seconds / count, joules, no_energy)


def _run(session: Session, feeds: Feeds, seconds: float) -> tuple[int, float]:
    """Runs a session at least once; returns how often, and the seconds that took."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        session.run(feeds)
        count += 1
    return count, time.perf_counter() - start
