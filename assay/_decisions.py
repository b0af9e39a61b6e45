"""Decisions made from measurements."""

from __future__ import annotations

import math

from assay._results import Choice
from assay._stages import PathLike, Progress, store_in
from engines.errors import UsageError
from pipeline.workflow import artifacts, console


def choose(
    model: str,
    *,
    p99: str | None = None,
    latency: str | None = None,
    min_throughput: float | None = None,
    max_drop: float | None = None,
    memory: str | None = None,
    root: PathLike = artifacts.ROOT,
    progress: Progress | None = None,
) -> Choice:
    """Chooses the engine, precision and batch that surely keep bounds.

    Among those of all precisions that are proved and that `bench` or `sweep` has measured: with a
    bound on a time, the one of the highest throughput; else the quickest.

    Args:
        model: A model's name, as for `train`.
        p99: Time that 99 of 100 inferences may take end to end, as in "5ms".
        latency: Time that the median inference may take end to end, as in "5ms".
        min_throughput: Images or rows per second.
        max_drop: Percentage points of accuracy that may be lost.
        memory: Memory that its process may take, as in "500MB".
        root: Folder of the artifacts.
        progress: Called with each progress line.

    Raises:
        NotMetError: None surely keeps the bounds; `details` says how far each does.
        UsageError: There is no bound, or one is not valid.
        DeployError: No engine is both proved and measured.
    """
    from pipeline.report.page.bounds import Bounds
    from pipeline.report.page.decision import decide

    for name, text in (("p99", p99), ("latency", latency), ("memory", memory)):
        if not isinstance(text, str | None):
            raise UsageError(f"{name} {text!r} has no unit", 'write it as text, as in "5ms"')
    for name, number, most in (
        ("min_throughput", min_throughput, math.inf),
        ("max_drop", max_drop, 100),
    ):
        if number is not None and not (type(number) in (int, float) and 0 <= number <= most):
            raise UsageError(f"{name} {number!r} is out of range", "give a number, 0 or more")
    bounds = Bounds.of(p99, latency, min_throughput, max_drop, memory)
    if bounds == Bounds():
        raise UsageError("choose needs a bound", "give p99, latency, min_throughput, or another")
    with console.redirected(progress):
        decision = decide(model, bounds, store_in(root, artifacts.DIST))
        chosen = decision.require()
    return Choice(
        engine=chosen.engine,
        precision=chosen.precision,
        device=chosen.device,
        batch=chosen.batch,
        threads=chosen.threads,
        sessions=chosen.sessions,
        seconds=chosen.seconds,
        throughput=chosen.rate,
        accuracy=chosen.accuracy,
        candidates=tuple(decision.document()["candidates"]),
    )
