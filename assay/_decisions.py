"""Decisions made from measurements."""

from __future__ import annotations

import os

from assay import _values
from assay._results import Choice
from assay._stages import PathLike, Progress, store_in
from engines.errors import UsageError
from pipeline.workflow import artifacts, console


def choose(
    model: PathLike,
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
        UsageError: Nothing is bounded, or the value of a bound is not valid.
        DeployError: No engine is both proved and measured.
    """
    from pipeline.report.page.bounds import Bounds
    from pipeline.report.page.decision import decide

    name_or_path = os.fspath(model) if isinstance(model, os.PathLike) else model
    model = _values.text("model", name_or_path, "give a model's name, or the path of a file")
    for name, bound, example in (
        ("p99", p99, "5ms"),
        ("latency", latency, "5ms"),
        ("memory", memory, "500MB"),
    ):
        if bound is not None:
            _values.text(name, bound, f'write it with its unit, as in "{example}"')
    if min_throughput is not None:
        min_throughput = _values.number("min_throughput", min_throughput)
    if max_drop is not None:
        max_drop = _values.number("max_drop", max_drop, 100, zero=True)
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
