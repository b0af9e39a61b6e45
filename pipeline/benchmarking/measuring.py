"""Times built engines in a process of their own, since the library of one may end it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import engines
from engines import hardware, temporary
from engines.contract import Feeds, OpenOptions, Session
from engines.errors import CrashedError, DeployError, FailedError
from pipeline.benchmarking import several
from pipeline.benchmarking.comparison import Load, compare
from pipeline.benchmarking.contention import Others
from pipeline.benchmarking.sweep import Result, Way, sweep
from pipeline.workflow import console, worker

T = TypeVar("T")

# What stands in the shared byte while no engine runs.
_NONE = 255


@dataclass(frozen=True)
class Built:
    """A built engine.

    Attributes:
        name: Its name in results.
        engine: The name of the engine.
        path: Its file.
        options: With the device that it runs on.
    """

    name: str
    engine: str
    path: Path
    options: OpenOptions


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        results: As `compare` returns them.
        failures: "name" and "reason" of each engine that failed, with the "batch" and "size" at
            which it did, if it could be opened.
        devices: Devices by name.
    """

    results: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    devices: dict[str, str]


def measure(
    built: Sequence[Built],
    loads: Sequence[Load],
    *,
    budget: float,
    seed: int,
    affinity: Sequence[int],
) -> Measured:
    """Times engines side by side.

    If the process dies, the engine that it ran is left out, and the others are measured anew.

    Args:
        budget: Seconds for each load.
        seed: Seed of the order within rounds.
        affinity: CPUs to run on; () means all that this process may use.

    Raises:
        CrashedError: The process died, and no engine was running.
    """
    left = list(built)
    failures: list[dict[str, Any]] = []
    while left:
        whole = _isolated(measure_here, left, loads, budget, seed, affinity)
        if isinstance(whole, Measured):
            return Measured(whole.results, failures + whole.failures, whole.devices)
        failures.append({"name": left.pop(whole.place).name, "reason": whole.reason})
    return Measured([], failures, {})


@dataclass(frozen=True)
class Crew:
    """A built engine that is to be opened so many times."""

    built: Built
    count: int


@dataclass(frozen=True)
class Plan:
    """One way to run a model; see `sweep.Way`.

    Attributes:
        crew: The place of its crew.
        count: How many of the crew's sessions serve at the same time.
    """

    name: str
    crew: int
    count: int
    feeds: Feeds
    rows: int
    accuracy: float | None


def race(
    crews: Sequence[Crew], plans: Sequence[Plan], *, budget: float, seed: int, prune: bool
) -> Raced:
    """Measures ways to run a model, as `sweep.sweep` does.

    If the process dies, the crew that it ran is left out, and the others are measured anew.

    Raises:
        CrashedError: The process died, and no crew was running, or none is left.
    """
    dead: dict[int, str] = {}
    while True:
        left = [crew for place, crew in enumerate(crews) if place not in dead]
        places = [place for place in range(len(crews)) if place not in dead]
        racing = [plan for plan in plans if plan.crew not in dead]
        moved = [replace(plan, crew=places.index(plan.crew)) for plan in racing]
        whole = _isolated(race_here, left, moved, budget, seed, prune)
        if isinstance(whole, Raced):
            return Raced(_with_failures(plans, dead, whole.results), whole.others)
        dead[places[whole.place]] = whole.reason
        if len(dead) == len(crews):
            raise CrashedError(whole.reason)


@dataclass(frozen=True)
class Raced:
    """What a race has measured.

    Attributes:
        results: Of each plan.
        others: The part of the CPUs that other processes took meanwhile; None if not known.
    """

    results: list[Result]
    others: float | None


@dataclass(frozen=True)
class _Died:
    """The process died while it ran what is at this place."""

    place: int
    reason: str


def _isolated(function: Callable[..., T], items: Sequence[Any], *args: Any) -> T | _Died:
    """Calls a function with items, more arguments and a mark in a new process."""
    with temporary.folder() as folder:
        mark = folder / "running"
        mark.write_bytes(bytes([_NONE]))
        try:
            return worker.call_alone("measuring", function, items, *args, mark)
        except CrashedError as error:
            (place,) = mark.read_bytes()
            if place >= len(items):
                raise
            return _Died(place, error.message)


def measure_here(
    built: Sequence[Built],
    loads: Sequence[Load],
    budget: float,
    seed: int,
    affinity: Sequence[int],
    mark: Path,
) -> Measured:
    """Times engines side by side in this process.

    Args:
        mark: A file of one byte, which holds the place of the engine that runs.
    """
    places = {one.name: place for place, one in enumerate(built)}
    sessions: dict[str, Session] = {}
    others: dict[str, list[Session]] = {}
    failures: list[dict[str, Any]] = []

    def failed(name: str, load: Load, error: DeployError) -> None:
        failures.append({**load.document(), "name": name, "reason": error.message})

    with ExitStack() as stack:
        stack.enter_context(hardware.keeping_to(affinity))
        note = _shared(stack, mark)
        for one in built:
            note(places[one.name])
            opens = partial(engines.get(one.engine).open, one.path, one.options)
            try:
                session = opens()
            except FailedError as error:
                failures.append({"name": one.name, "reason": error.message})
            else:
                sessions[one.name] = session
                others[one.name] = several.more(session, opens, stack)
        results = compare(
            sessions,
            loads,
            budget=budget,
            seed=seed,
            others=others,
            failed=failed,
            running=lambda name: note(places[name]),
        )
        devices = {name: session.device for name, session in sessions.items()}
        note(_NONE)
    return Measured(results, failures, devices)


def race_here(
    crews: Sequence[Crew], plans: Sequence[Plan], budget: float, seed: int, prune: bool, mark: Path
) -> Raced:
    """Measures ways to run a model in this process; see `race`.

    Args:
        mark: A file of one byte, which holds the place of the crew that runs.
    """
    opened: list[list[Session]] = []
    failures: dict[int, str] = {}
    with ExitStack() as stack:
        note = _shared(stack, mark)
        for place, crew in enumerate(crews):
            note(place)
            engine = engines.get(crew.built.engine)
            sessions: list[Session] = []
            try:
                for _ in range(crew.count):
                    session = engine.open(crew.built.path, crew.built.options)
                    sessions.append(stack.enter_context(closing(session)))
            except FailedError as error:
                failures[place] = error.message
            opened.append(sessions)
        racing = [plan for plan in plans if plan.crew not in failures]
        ways = [
            Way(plan.name, opened[plan.crew][: plan.count], plan.feeds, plan.rows, plan.accuracy)
            for plan in racing
        ]
        others = Others()
        with console.bar("sweep", budget) as bar:
            results = sweep(
                ways,
                budget=budget,
                seed=seed,
                prune=prune,
                progress=lambda seconds, left: bar.advance(seconds, f"{left} left"),
                running=lambda index: note(racing[index].crew),
            )
        part = others.part()
        note(_NONE)
    return Raced(_with_failures(plans, failures, results), part)


def _with_failures(
    plans: Sequence[Plan], failures: Mapping[int, str], results: Iterable[Result]
) -> list[Result]:
    """Returns a result for each plan: those of crews that did not fail are given in their order."""
    rest = iter(results)
    return [
        Result(None, None, {}, 0, 0, failure=failures[plan.crew])
        if plan.crew in failures
        else next(rest)
        for plan in plans
    ]


def _shared(stack: ExitStack, mark: Path) -> Callable[[int], None]:
    """Returns a function that notes what runs, where a parent process can read it."""
    file = stack.enter_context(mark.open("r+b"))
    shared = stack.enter_context(mmap.mmap(file.fileno(), 1))

    def note(place: int) -> None:
        shared[0] = place

    return note
