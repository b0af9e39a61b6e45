"""Timing open engines side by side, for one batch size after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from engines.contract import Feeds, Session
from engines.errors import DeployError
from pipeline.benchmarking import clock
from pipeline.benchmarking.bottleneck import bottleneck, enqueue_seconds
from pipeline.benchmarking.contention import Others, blamed
from pipeline.workflow import console


@dataclasses.dataclass(frozen=True)
class Load:
    """What the sessions are timed on.

    Attributes:
        size: The sizes of the inputs' axes, where several are measured; else "".
    """

    batch: int
    feeds: Feeds
    size: str = ""

    def document(self) -> dict[str, Any]:
        """Returns what names the load in a result."""
        return {"batch": self.batch, **({"size": self.size} if self.size else {})}

    def __str__(self) -> str:
        return f"batch {self.batch}" + (f" at {self.size}" if self.size else "")


def compare(
    sessions: Mapping[str, Session],
    loads: Sequence[Load],
    *,
    budget: float,
    seed: int,
    others: Mapping[str, Sequence[Session]] = MappingProxyType({}),
    failed: Callable[[str, Load, DeployError], None] | None = None,
    running: Callable[[str], None] = lambda _name: None,
) -> list[dict[str, Any]]:
    """Returns the timings of sessions in their JSON form; see `clock.Timing`.

    Each also has its "batch", its "size" if there is one, the name of its "baseline", and "others",
    the part of the CPUs that other processes took meanwhile; on a GPU, what it is "bound" by and
    "enqueue_seconds", as in `bottleneck`.

    Args:
        sessions: Open sessions by name; the first on each kind of device is its baseline.
        loads: What they are timed on, one after the other.
        budget: Seconds for each load. What one does not need is added to the next, up to once.
        seed: Seed of the order within rounds.
        others: More sessions on the same files, by name; see `clock.Candidate`.
        failed: Called with the name of a session that fails, the load and the error; the others go
            on. By default the error is raised.
        running: Called with the name of a session before it runs.
    """
    results: list[dict[str, Any]] = []
    saved = 0.0  # what loads before did not need
    with console.bar("bench", len(loads) * budget) as bar:
        for load in loads:
            whole = left = budget + saved
            processes = Others()

            def progress(seconds: float, load: Load = load) -> None:
                nonlocal left
                bar.advance(min(seconds, max(left, 0)), str(load))
                left -= seconds

            for group in _by_device(sessions):
                candidates = [
                    clock.Candidate(name, sessions[name], load.feeds, others.get(name, ()))
                    for name in group
                ]
                timings = clock.measure(
                    candidates,
                    budget=whole * len(group) / len(sessions),
                    seed=seed,
                    progress=progress,
                    failed=failed and partial(_of_load, failed, load),
                    running=running,
                )
                part = processes.part()
                alive = [*dict.fromkeys(entry.name for entry in timings)]
                bounds = {name: _bound(sessions[name], load.feeds, name, timings) for name in alive}
                results += [
                    {
                        **load.document(),
                        "baseline": alive[0],
                        **dataclasses.asdict(entry),
                        "others": part,
                        "busy": blamed(entry.busy, part),
                        **bounds[entry.name],
                    }
                    for entry in timings
                ]
            saved = min(max(left, 0), budget)
            bar.advance(max(left, 0) - saved)
        bar.advance(saved)
    return results


def _of_load(
    failed: Callable[[str, Load, DeployError], None], load: Load, name: str, error: DeployError
) -> None:
    failed(name, load, error)


def _bound(
    session: Session, feeds: Feeds, name: str, timings: Sequence[clock.Timing]
) -> dict[str, Any]:
    """Returns what bounds a session's time on a GPU, and its "enqueue_seconds"; {} on a CPU."""
    session.bind(feeds)
    enqueue = enqueue_seconds(session)
    if enqueue is None:
        return {}
    seconds = {entry.boundary: entry.seconds.value for entry in timings if entry.name == name}
    bound = bottleneck(enqueue, seconds["device"], seconds["end to end"])
    return {"bound": bound, "enqueue_seconds": enqueue}


def _by_device(sessions: Mapping[str, Session]) -> list[list[str]]:
    """Returns the names of the sessions, grouped by kind of device.

    Groups are timed separately, since a CPU engine's threads compete with the thread that
    launches on a GPU: together with engines of 16 threads, eager launches on an H100 took 1.5
    times as long.
    """
    kinds: dict[str, list[str]] = {}
    for name, session in sessions.items():
        kinds.setdefault(session.device.partition(":")[0], []).append(name)
    return list(kinds.values())
