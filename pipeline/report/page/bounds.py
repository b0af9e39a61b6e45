"""Which of the proved and measured engines keep bounds on latency, throughput and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.benchmarking.contention import NOTICEABLE
from pipeline.report.page.choice import Candidate
from pipeline.report.units import byte_count, duration, seconds, size


@dataclass(frozen=True)
class Bounds:
    """What an engine must keep; None does not bound.

    Attributes:
        p99: Seconds that 99 of 100 inferences may take, end to end.
        latency: Seconds that the median inference may take, end to end.
        throughput: The least number of images (or rows) per second.
        drop: Percentage points of accuracy that may be lost against the model in float64.
        memory: Bytes of the host's memory that a process with one session may take.
    """

    p99: float | None = None
    latency: float | None = None
    throughput: float | None = None
    drop: float | None = None
    memory: int | None = None

    @classmethod
    def of(
        cls,
        p99: str | None,
        latency: str | None,
        throughput: float | None,
        drop: float | None,
        memory: str | None,
    ) -> Bounds:
        """Returns bounds on times and memory that are written with their units.

        Raises:
            UsageError: A time or a size is written in another way, or is not above 0.
        """
        return cls(
            p99=None if p99 is None else seconds(p99),
            latency=None if latency is None else seconds(latency),
            throughput=throughput,
            drop=drop,
            memory=None if memory is None else byte_count(memory),
        )


@dataclass(frozen=True)
class Kept:
    """Whether a candidate keeps all bounds.

    Attributes:
        status: "yes" if it is sure at 95 %, "unsure" if the interval holds the bound, else "no".
        failing: The bounds that it does not keep, or not surely, in words.
        near: By what was measured it may keep the bounds, even if others did not disturb it.
    """

    candidate: Candidate
    status: str
    failing: tuple[str, ...]
    near: bool = True


def kept(candidate: Candidate, bounds: Bounds, accuracy: float | None) -> Kept:
    """Compares what was measured with the bounds.

    Args:
        accuracy: The part of the test images that the model classifies right; None if not known.
    """
    checks = []
    if bounds.latency is not None:
        checks.append(_above("median", candidate.low, candidate.high, bounds.latency))
    if bounds.p99 is not None:
        if candidate.p99 is not None:
            checks.append(_above("p99", *candidate.p99, bounds.p99))
        elif candidate.low > bounds.p99:
            checks.append(_above("median", candidate.low, candidate.high, bounds.p99))
        else:
            checks.append(("unsure", "too few inferences to know the p99"))
    if bounds.throughput is not None:
        _, low, high = candidate.rates
        words = f"{low:,.0f} to {high:,.0f} {candidate.counted}/s"
        checks.append((_status(bounds.throughput <= low, bounds.throughput <= high), words))
    near = all(status != "no" for status, _ in checks)
    others = candidate.others or 0.0
    if others > NOTICEABLE:
        # They make nothing faster, so that what keeps a bound beside them keeps it.
        checks = [("unsure" if state == "no" else state, words) for state, words in checks]
        if any(state != "yes" for state, _ in checks):
            checks.append(("unsure", f"other processes took {others:.0%} of the CPUs"))
    if bounds.drop is not None:
        checks.append(_drop(candidate, bounds.drop, accuracy))
    if bounds.memory is not None:
        checks.append(_memory(candidate, bounds.memory))
    if candidate.busy:
        checks.append(("unsure", "other processes slowed it down"))
    statuses = {status for status, _ in checks}
    worst = next((status for status in ("no", "unsure") if status in statuses), "yes")
    failing = dict.fromkeys(words for state, words in checks if state != "yes")
    return Kept(candidate, worst, tuple(failing), near and worst != "no")


def _drop(candidate: Candidate, bound: float, accuracy: float | None) -> tuple[str, str]:
    if candidate.lost is not None:
        value, low, high = candidate.lost
        ends = f" ({low:.2f} to {high:.2f})" if low < high else ""
        words = f"it loses {value:.2f}{ends} points of accuracy"
        return _status(high <= bound, low <= bound), words
    if accuracy is None or candidate.accuracy is None:
        return "unsure", "the accuracy is not known"
    lost = 100 * (accuracy - candidate.accuracy)
    return _status(lost <= bound, lost <= bound), f"it loses {lost:.2f} points of accuracy"


def _memory(candidate: Candidate, bound: int) -> tuple[str, str]:
    if candidate.sessions > 1:
        return "unsure", "the memory of several sessions is not known"
    if candidate.memory is None:
        return "unsure", "its memory is not known; `assay profile` measures it"
    within = candidate.memory <= bound
    return _status(within, within), f"it takes {size(candidate.memory)}"


def _above(name: str, low: float, high: float, bound: float) -> tuple[str, str]:
    return _status(high <= bound, low <= bound), f"{name} {duration(low)} to {duration(high)}"


def _status(surely: bool, perhaps: bool) -> str:
    return "yes" if surely else "unsure" if perhaps else "no"


def hint(results: Sequence[Kept], bounds: Bounds) -> str:
    """Returns what to do if none surely keeps the bounds."""
    candidates = [entry.candidate for entry in results]
    if bounds.drop is not None and all(one.accuracy is None for one in candidates):
        return "leave --max-drop out: the classes of this model's images are not known"
    if bounds.memory is not None and all(one.memory is None for one in candidates):
        return "run `assay profile` for each precision, which measures memory"
    more = "measure more with `assay sweep` or `assay bench` (--batch, --precision, --budget)"
    if any((one.others or 0.0) > NOTICEABLE for one in candidates):
        more = f"measure on a quiet machine, or {more}"
    return f"{more}, or relax the bounds"


def best(results: Sequence[Kept], bounds: Bounds) -> Kept | None:
    """Returns the best of those that surely keep the bounds; None if none does.

    With a bound on a time, that is the one of the highest throughput; else the quickest.
    """
    return _first([entry for entry in results if entry.status == "yes"], bounds)


def perhaps(results: Sequence[Kept], chosen: Kept, bounds: Bounds) -> Kept | None:
    """Returns what is surely better than the chosen, and may keep the bounds; None if nothing."""
    one = chosen.candidate

    def better(other: Candidate) -> bool:
        if _wants_rate(bounds):
            return other.rates[1] > one.rates[2]
        return other.high < one.low

    unsure = [entry for entry in results if entry.status == "unsure" and entry.near]
    return _first([entry for entry in unsure if better(entry.candidate)], bounds)


def wish(bounds: Bounds) -> str:
    """Returns what the best does, in words."""
    return "serves more" if _wants_rate(bounds) else "is quicker"


def _wants_rate(bounds: Bounds) -> bool:
    return bounds.p99 is not None or bounds.latency is not None


def _first(entries: Sequence[Kept], bounds: Bounds) -> Kept | None:
    if _wants_rate(bounds):
        return max(entries, key=lambda entry: entry.candidate.rate, default=None)
    return min(entries, key=lambda entry: entry.candidate.seconds, default=None)
