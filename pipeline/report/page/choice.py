"""Chooses what to deploy: the fastest of the proved engines, for latency and for throughput."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporters import PRECISIONS
from pipeline.benchmarking.contention import NOTICEABLE
from pipeline.report.bench import WHOLE, counted, load_of
from pipeline.report.page.results import PrecisionResults, Results
from pipeline.report.units import duration
from pipeline.report.verify import deviating_type
from pipeline.workflow import hints

if TYPE_CHECKING:
    from pipeline.verification.verdict import Verdict

# The name of the run in which many ways to run a model were measured side by side.
SWEEP = "the sweep"


@dataclass(frozen=True)
class Candidate:
    """An engine that is proved and measured, at one batch size.

    Attributes:
        engine: Its name, with " graph" if it replays a CUDA graph.
        computed_in: The types it computes in, if they are others than the graph's.
        batch: Rows in one inference.
        size: The sizes of the inputs' axes, where several are measured; else "".
        seconds: Median time of one inference end to end.
        low: Lower end of its 95 % interval.
        high: Upper end.
        settled: Whether the interval became narrow enough within the budget.
        busy: Whether other processes slowed it down so much that they are what was measured.
        others: The part of the CPUs that other processes took meanwhile; None if not known.
        accuracy: The part of the test images that it classifies right; None if not known.
        p99: The 95 % interval of the time that 99 of 100 inferences take; None if not known.
        counted: What a batch consists of: "images" or "rows".
        run: Names the run; only engines of the same run were measured side by side.
        memory: Bytes that a process with it took at most, at all batch sizes that `assay profile`
            ran; None if they are not known, or for several sessions.
        threads: CPU threads of one inference.
        sessions: How many requests are served at a time, each by a session with a client.
        served: Images or rows per second with their 95 % interval, (value, low, high), if they were
            counted; else they follow from the seconds.
        lost: Percentage points of accuracy that it loses against float64, (value, low, high), with
            the 95 % interval in quantized precisions; None if not known.
    """

    engine: str
    precision: str
    computed_in: str
    device: str
    batch: int
    size: str
    seconds: float
    low: float
    high: float
    settled: bool
    busy: bool
    others: float | None
    accuracy: float | None
    p99: tuple[float, float] | None
    counted: str
    run: str
    memory: int | None
    threads: int
    sessions: int = 1
    served: tuple[float, float, float] | None = None
    lost: tuple[float, float, float] | None = None

    @property
    def rate(self) -> float:
        """Images or rows per second."""
        return self.rates[0]

    @property
    def rates(self) -> tuple[float, float, float]:
        """Images or rows per second, with the lower and the upper end of their 95 % interval."""
        return self.served or (
            self.batch / self.seconds,
            self.batch / self.high,
            self.batch / self.low,
        )

    @property
    def crew(self) -> str:
        """How many requests are served at a time, in words."""
        if self.sessions == 1:
            return "one inference at a time"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.sessions} at a time, each by a session of {threads}"

    @property
    def name(self) -> str:
        """The engine and its precision, in words."""
        return f"{self.engine} in {self.precision}"

    @property
    def point(self) -> tuple[str, str, int, str, int, int]:
        """What is measured."""
        return (
            *(self.engine, self.precision, self.batch, self.size),
            *(self.threads, self.sessions),
        )


@dataclass(frozen=True)
class Choice:
    """What to deploy for one goal.

    Attributes:
        goal: "latency" or "throughput".
        reasons: Why, in sentences.
        doubts: What weakens the choice, in sentences; a command stands between backquotes.
    """

    goal: str
    candidate: Candidate
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]


def candidates(results: Results, *, beaten: bool = False) -> list[Candidate]:
    """Returns all engines that are proved and measured, at each batch size and in each run.

    The sweep comes first, then runs with several precisions side by side.

    Args:
        beaten: With the ways that others beat in a sweep, which knows nothing of memory.
    """
    verdicts = {
        (part.name, name): verdict
        for part in results.precisions
        for name, verdict in part.verdicts.items()
        if verdict.status == "pass"
    }
    memory = {
        (part.name, entry["engine"]): entry["memory"]["peak"]
        for part in results.precisions
        for entry in (part.costs or {}).get("engines", ())
        if "error" not in entry
    }
    every = _swept(results.sweep, verdicts, memory, beaten) if results.sweep else []
    for run, precision, measurements in runs(results.precisions):
        for entry in measurements["results"]:
            engine, own = named(entry["name"], precision)
            verdict = verdicts.get((own, engine.split()[0]))
            if entry["boundary"] != WHOLE or verdict is None:
                continue
            seconds = entry["seconds"]
            batch, size = load_of(entry)
            known = entry["percentiles"].get("p99")
            candidate = Candidate(
                engine=engine,
                precision=own,
                computed_in=deviating_type(verdict.facts, own),
                device=measurements["devices"][entry["name"]],
                batch=batch,
                size=size,
                seconds=seconds["value"],
                low=seconds["low"],
                high=seconds["high"],
                settled=entry["settled"],
                busy=entry["busy"],
                others=entry["others"],
                accuracy=accuracy(verdict),
                p99=(known["low"], known["high"]) if known else None,
                counted=counted(measurements),
                run=run,
                memory=memory.get((own, engine)),
                threads=measurements["machine"]["threads"],
                lost=lost(verdict),
            )
            every.append(candidate)
    return every


def _swept(
    sweep: Mapping[str, Any],
    verdicts: Mapping[tuple[str, str], Verdict],
    memory: Mapping[tuple[str, str], int | None],
    beaten: bool,
) -> list[Candidate]:
    """Returns the ways to run a model that nothing in a sweep beats; see `candidates`."""
    every = []
    for point in sweep["points"]:
        verdict = verdicts.get((point["precision"], point["engine"]))
        if (point["beaten_by"] and not beaten) or point["failure"] or verdict is None:
            continue
        known, served = point["percentiles"].get("p99"), point["throughput"]
        every.append(
            Candidate(
                engine=point["engine"],
                precision=point["precision"],
                computed_in=deviating_type(verdict.facts, point["precision"]),
                device=point["device"],
                batch=point["batch"],
                size="",
                seconds=point["latency"]["value"],
                low=point["latency"]["low"],
                high=point["latency"]["high"],
                settled=True,
                busy=False,
                others=sweep["others"],
                accuracy=accuracy(verdict),
                p99=(known["low"], known["high"]) if known else None,
                counted=counted(sweep),
                run=SWEEP,
                memory=memory.get((point["precision"], point["engine"]))
                if point["sessions"] == 1
                else None,
                threads=point["threads"],
                sessions=point["sessions"],
                served=(served["value"], served["low"], served["high"]),
                lost=lost(verdict),
            )
        )
    return every


def runs(precisions: Sequence[PrecisionResults]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields name, precision and measurements of each run of bench; comparisons come first."""
    for part in precisions:
        if part.comparison is not None:
            names = [named(entry["name"], part.name)[1] for entry in part.comparison["results"]]
            others = sorted({*names} - {part.name}, key=[*PRECISIONS].index)
            yield f"{part.name} beside {' and '.join(others)}", part.name, part.comparison
    for part in precisions:
        if part.measurements is not None:
            yield part.name, part.name, part.measurements


def named(name: str, precision: str) -> tuple[str, str]:
    """Returns engine and precision of a name in measurements, such as "openvino fp32 graph".

    Args:
        precision: The precision of engines whose name has none.
    """
    words = name.split()
    own = next((word for word in words if word in PRECISIONS), precision)
    return " ".join(word for word in words if word not in PRECISIONS), own


def loads(points: Sequence[Candidate]) -> list[tuple[int, str]]:
    """Returns batches and sizes: sizes in the order in which they were measured."""
    every = dict.fromkeys((point.batch, point.size) for point in points)
    return sorted(every, key=lambda load: load[0])


def frontier(points: Sequence[Candidate]) -> list[Candidate]:
    """Returns those that no other one beats in latency and throughput, from the lowest latency."""
    best: list[Candidate] = []
    for point in sorted(points, key=lambda entry: (entry.seconds, -entry.rate)):
        if not best or point.rate > best[-1].rate:
            best.append(point)
    return best


def accuracy(verdict: Verdict) -> float | None:
    """Returns the part of the images that an engine classifies right; None if not known."""
    return None if verdict.flips is None else verdict.flips.top1


def lost(verdict: Verdict) -> tuple[float, float, float] | None:
    """Returns the accuracy that an engine loses; see `Candidate`.

    In other precisions, what rounding explains is all that it may lose, so that it has no interval.
    """
    drop = None if verdict.flips is None else verdict.flips.drop
    if drop is None:
        return None
    quantized = PRECISIONS[verdict.precision].quantized
    ends = (drop.low, drop.high) if quantized else (drop.value, drop.value)
    return 100 * drop.value, 100 * ends[0], 100 * ends[1]


def current(results: Results, *, beaten: bool = False) -> list[Candidate]:
    """Returns the candidates to choose among: each way to run the model once, at the usual size.

    What a sweep has measured counts before what other runs have: they were not side by side.

    Args:
        beaten: See `candidates`.
    """
    points = results.sweep["points"] if results.sweep else ()
    swept = {(p["engine"], p["precision"], p["batch"]) for p in points if not p["failure"]}
    known = [
        entry
        for entry in candidates(results, beaten=beaten)
        if entry.run == SWEEP or (entry.engine, entry.precision, entry.batch) not in swept
    ]
    usual = next((entry.size for entry in known if entry.run != SWEEP), "")  # measured first
    return first_of_each([entry for entry in known if entry.size in ("", usual)])


def first_of_each(known: Sequence[Candidate]) -> list[Candidate]:
    """Returns those that were measured first, of several runs with the same point."""
    first: dict[Any, Candidate] = {}
    for entry in known:
        first.setdefault(entry.point, entry)
    return [*first.values()]


def choose(model: str, known: Sequence[Candidate]) -> tuple[Choice, ...]:
    """Returns the choice for each goal; () if nothing is proved and measured.

    Of several runs with the same engine, and of several sizes of the inputs, the first one counts.
    """
    same_size = [entry for entry in first_of_each(known) if entry.size == known[0].size]
    return tuple(_best(goal, model, same_size) for goal in _GOALS if same_size)


@dataclass(frozen=True)
class _Goal:
    """What is to be small.

    Attributes:
        cost: Returns it for a candidate, with the lower and the upper end of its interval.
        text: Says what the goal makes of a candidate.
    """

    cost: Callable[[Candidate], tuple[float, float, float]]
    text: Callable[[Candidate], str]


_GOALS = {
    "latency": _Goal(
        lambda entry: (entry.seconds, entry.low, entry.high), lambda entry: duration(entry.seconds)
    ),
    "throughput": _Goal(
        lambda entry: (1 / entry.rates[0], 1 / entry.rates[2], 1 / entry.rates[1]),
        lambda entry: f"{entry.rate:,.0f} {entry.counted}/s",
    ),
}


def _best(goal: str, model: str, known: Sequence[Candidate]) -> Choice:
    """Returns the fastest; of those that the measurement cannot tell from it, the most precise."""
    cost, words = _GOALS[goal].cost, _GOALS[goal].text
    digits = [*PRECISIONS].index
    ranked = sorted(known, key=lambda entry: cost(entry)[0])
    reach = cost(ranked[0])[2]
    near = [entry for entry in ranked if cost(entry)[1] <= reach]
    best = min(near, key=lambda entry: digits(entry.precision))
    others = [e for e in ranked if (e.engine, e.precision) != (best.engine, best.precision)]
    count = len({(entry.engine, entry.precision) for entry in known})
    batches = ", ".join(map(str, sorted({entry.batch for entry in known})))
    among = f"the best of {count} proved engines" if others else "the only proved engine"
    reasons = [
        f"{best.name} at batch {best.batch} on {best.device}: {words(best)} end to end,"
        f" {best.crew}, {among} measured at batch {batches}."
    ]
    doubts = []
    if others:
        second = others[0]
        described = f"{second.name} at batch {second.batch} ({words(second)})"
        if second not in near:
            reasons.append(f"Next is {described}; the 95 % intervals do not overlap.")
        else:
            less = " but less precise" if digits(second.precision) > digits(best.precision) else ""
            doubts.append(f"{described} may be as fast{less}: the 95 % intervals overlap.")
    if best.accuracy is not None:
        reasons.append(f"It classifies {best.accuracy:.2%} of the test images right.")
    if best.computed_in:
        doubts.append(f"It computes in {best.computed_in} here, so a target may differ.")
    if best.busy:
        doubts.append("Other processes slowed it down; measure on a quiet machine.")
    elif (best.others or 0.0) > NOTICEABLE:
        doubts.append(f"Other processes took {best.others:.0%} of the CPUs meanwhile.")
    if not best.settled:
        doubts.append("Its time is unstable; a larger --budget helps.")
    if elsewhere := _measured_elsewhere(model, best, others):
        doubts.append(elsewhere)
    return Choice(goal, best, tuple(reasons), tuple(doubts))


def _measured_elsewhere(model: str, best: Candidate, others: Sequence[Candidate]) -> str:
    """Returns what to say of precisions that were measured in another run than the best."""
    beside = {entry.precision for entry in others if entry.run == best.run}
    against = {entry.precision for entry in others} - beside - {best.precision}
    if not against:
        return ""
    names = sorted(against, key=[*PRECISIONS].index)
    sentence = (
        f"{' and '.join(names)} {'were' if len(names) > 1 else 'was'} measured in another run"
    )
    engines: dict[str, set[str]] = {}
    for entry in (best, *others):
        engines.setdefault(entry.precision, set()).add(entry.engine.split()[0])
    shared = set.intersection(*(engines[name] for name in (best.precision, *names)))
    if not shared:
        return f"{sentence}."
    params = {"model": model, "precision": best.precision, "against": names}
    command = hints.command("bench", {**params, "engine": sorted(shared)})
    return f"{sentence}; `{command}` measures side by side."
