"""What an engine serves with more and more sessions, and how many requests a second it bears."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from engines.contract import Feeds, Session
from engines.errors import CrashedError, DeployError
from pipeline.benchmarking.clients import HungError
from pipeline.benchmarking.load import Served, arrivals, closed
from pipeline.benchmarking.saturation import STEPS, Saturation, bears, saturation
from pipeline.workflow import console, worker

Opens = Callable[[int], Session]  # with so many CPU threads

# One request at a time cannot keep a p99 if more than this part of them is late.
_MOST = 0.5


@dataclass(frozen=True)
class Plan:
    """What is measured of each engine.

    Attributes:
        threads: CPU threads of one inference, by the number of sessions.
        rates: Requests/s to serve, besides those that the search for the largest rate tries.
        p99: The bound on p99 that the largest rate must keep, in seconds; None does not bound it.
        seconds: The time that each run measures.
        seed: Seed of the arrivals.
    """

    threads: Mapping[int, int]
    rates: tuple[float, ...]
    p99: float | None
    seconds: float
    seed: int

    @property
    def runs(self) -> int:
        """How many runs there are of each engine."""
        return len(self.threads) + len(self.rates) + STEPS


def measure_apart(
    name: str, opener: Callable[[], Opens], feeds: Feeds, rows: int, plan: Plan
) -> dict[str, Any]:
    """Does what `measure` does in a new process, which the engine's library may end.

    Args:
        name: The engine's name.
        opener: Returns what `measure` opens sessions with; it can be pickled.
    """
    try:
        # A session that does not return ends with the process.
        return worker.call_alone(f"loading {name}", measure_here, name, opener, feeds, rows, plan)
    except CrashedError as error:
        return {**_nothing(), "failure": error.message}


def measure_here(
    name: str, opener: Callable[[], Opens], feeds: Feeds, rows: int, plan: Plan
) -> dict[str, Any]:
    """Does what `measure_apart` does, in this process."""
    with console.bar("load", plan.runs) as bar:
        return measure(opener(), feeds, rows, plan, partial(bar.advance, 1, name))


def measure(
    open_session: Opens,
    feeds: Feeds,
    rows: int,
    plan: Plan,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Returns what an engine serves, in JSON form.

    A session that does not return is a failure, too. Nothing more can be measured in this process
    then, since its thread may use the CPUs.

    Args:
        open_session: Opens a session with so many CPU threads for one inference.
        feeds: The inputs of every request.
        rows: Rows of `feeds`.
        progress: Called after each run.

    Returns:
        "closed": a `Served` for each number of sessions, with the "threads" of one inference.
        "arrivals": likewise for each rate, in rising order, and whether it is "borne"; with as many
        sessions as throughput needs: the fewest whose throughput is not surely below the largest.
        "saturation": "concurrency", "threads", "rate" and "refused"; see `Saturation`. Both rates
        are 0 if even requests that come one at a time take longer than the bound on p99. None if
        it was not found.
        "device": where it ran. "failure": why it could not be opened, or failed, which ended its
        measurements; or "".
    """
    result = _nothing()
    try:
        with _Pool(open_session) as pool:
            _measure(pool, feeds, rows, plan, result, progress)
    except DeployError as error:
        result["failure"] = error.message
    return result


def _nothing() -> dict[str, Any]:
    return {"device": "", "closed": [], "arrivals": [], "saturation": None, "failure": ""}


def _measure(
    pool: _Pool,
    feeds: Feeds,
    rows: int,
    plan: Plan,
    result: dict[str, Any],
    progress: Callable[[], None],
) -> None:
    """Fills in the result of `measure`, as far as the sessions last."""
    by_count: dict[int, Served] = {}
    for count, threads in plan.threads.items():
        sessions = pool.take(count, threads)
        result["device"] = sessions[0].device
        served = closed(sessions, feeds, seconds=plan.seconds, rows=rows, bound=plan.p99)
        progress()
        result["closed"].append({"threads": threads, **dataclasses.asdict(served)})
        if served.throughput is None or served.failure:
            result["failure"] = served.failure
            return
        by_count[count] = served
    count, throughput = _enough(by_count)
    threads = plan.threads[count]
    sessions = pool.take(count, threads)
    runs: list[Served] = []
    for rate in plan.rates:
        served = arrivals(
            sessions,
            feeds,
            rate=rate,
            seconds=plan.seconds,
            seed=plan.seed,
            rows=rows,
            bound=plan.p99,
            to_the_end=True,
        )
        runs.append(served)
        progress()
        if served.failure:
            break
    else:
        limit = Saturation(0.0, 0.0, ())
        if not _always_late(by_count[count], sessions, feeds, plan):
            limit = saturation(
                sessions,
                feeds,
                throughput=throughput,
                seconds=plan.seconds,
                seed=plan.seed,
                rows=rows,
                p99=plan.p99,
                progress=progress,
            )
        for _ in range(STEPS - len(limit.runs)):
            progress()
        runs += limit.runs
        if not limit.failure:
            result["saturation"] = {
                "concurrency": count,
                "threads": threads,
                "rate": limit.rate,
                "refused": limit.refused,
            }
    result["failure"] = next((run.failure for run in runs if run.failure), "")
    result["arrivals"] = [
        {"threads": threads, "borne": bears(run), **dataclasses.asdict(run)}
        for run in sorted(runs, key=lambda run: run.rate or 0.0)
    ]


def _always_late(served: Served, sessions: Sequence[Session], feeds: Feeds, plan: Plan) -> bool:
    """Whether no rate can keep the bound on p99, since one request at a time does not.

    Where one in a hundred may be late, a run of six or more in which most are late leaves no doubt.

    Args:
        served: What the sessions did for clients that wait. They may have slowed each other down.
    """
    if served.late > _MOST and served.concurrency > 1:
        served = closed(sessions[:1], feeds, seconds=plan.seconds, bound=plan.p99)
    return served.late > _MOST


def _enough(by_count: Mapping[int, Served]) -> tuple[int, float]:
    """Returns the fewest sessions whose throughput is not surely below the largest, and that."""
    rates = {count: served.throughput for count, served in by_count.items() if served.throughput}
    best = max(rates.values(), key=lambda rate: rate.value)
    count = min(count for count, rate in rates.items() if rate.high >= best.low)
    return count, rates[count].value


class _Pool:
    """Open sessions of an engine, which are used again."""

    def __init__(self, open_session: Opens) -> None:
        self._open = open_session
        self._stack = ExitStack()
        self._sessions: list[Session] = []
        self._threads = 0

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, HungError | KeyboardInterrupt):
            self._stack.pop_all()  # a thread may be in a session, which may then crash if closed
        else:
            self._close()

    def take(self, count: int, threads: int) -> list[Session]:
        """Returns so many sessions with so many CPU threads each; others of them are closed."""
        if threads != self._threads or count < len(self._sessions):
            self._close()
        self._threads = threads
        while len(self._sessions) < count:
            self._sessions.append(self._stack.enter_context(closing(self._open(threads))))
        return self._sessions

    def _close(self) -> None:
        self._stack.close()
        self._sessions = []
