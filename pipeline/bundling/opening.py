"""Opening an engine of an unpacked bundle: the fastest that passes verification here."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path

import engines
from engines.contract import Feeds, OpenOptions, Session
from engines.errors import DeployError, NotAvailableError, ParityError
from pipeline.bundling.checking import Model, engines_named
from pipeline.bundling.manifest import backend
from pipeline.golden.file import Reference
from pipeline.verification.engine_proof import open_built
from pipeline.workflow import hints, records
from pipeline.workflow.artifacts import (
    DIST,
    ENGINE,
    GOLDEN,
    Paths,
    record_beside,
)

# Time and rows for choosing the fastest engine.
_TIMING_SECONDS = 0.2
_TIMING_ROWS = 8


def is_engine_file(path: Path) -> bool:
    """Whether a path is that of a built engine, with its record beside it, instead of a bundle."""
    return path.stem == "engine" and record_beside(path).exists()


def engine_file(path: Path) -> Model:
    """Returns a built engine as if it were alone in a bundle.

    Raises:
        DeployError: The engine or its golden file is missing, damaged or out of date.
    """
    record = records.load(record_beside(path))
    if record is None or not {"model", "precision", "engine"} <= record.params.keys():
        raise DeployError(
            f"{record_beside(path)} is not the record of a build", "build the engine again"
        )
    fields = {name: str(record.params[name]) for name in ("model", "precision", "engine")}
    engine, golden = ENGINE.at(**fields), GOLDEN.at(**fields)
    root = path.resolve().parents[len(Path(engine.path).parts) - 1]
    paths = Paths(root, root, fields, (engine, golden))
    with hints.completed(hints.Place(root, DIST, None)):
        for artifact in (engine, golden):
            records.RecordVerifier(root).digest(artifact, paths, fields)
    return Model(fields["precision"], {fields["engine"]: path}, paths.locate(golden))


def proved(
    model: Model,
    engine: str | None,
    device: str,
    threads: int,
    *,
    among: Collection[str] = (),
) -> list[str]:
    """Returns the names of a model's engines that pass verification on this machine.

    Args:
        engine: The only one to judge, or the backend of those to judge; None means all.
        among: Those to judge if none is named; () means all.

    Raises:
        ParityError: None passes, and at least one computes something else.
        NotAvailableError: This machine can run none.
        UsageError: The model does not have the named one.
    """
    names = engines_named([model], engine)
    if engine is None and among:
        names = [name for name in names if name in among]
    verdicts = [model.prove(name, device, threads) for name in names]
    passed = [verdict.subject for verdict in verdicts if verdict.status == "pass"]
    if passed:
        return passed
    reasons = "; ".join(
        f"{verdict.subject}: {verdict.status}, {verdict.reason}" for verdict in verdicts
    )
    if any(verdict.status not in ("pass", "not run") for verdict in verdicts):
        raise ParityError(f"no engine of the bundle passes verification here: {reasons}")
    raise NotAvailableError(
        f"no engine of the bundle runs on this machine: {reasons}",
        "`assay doctor` shows what each engine lacks on this machine",
    )


def fastest(
    names: list[str], model: Model, golden: Reference, device: str, threads: int
) -> tuple[str, Session]:
    """Opens engines, times them on a few golden rows, and returns the fastest one."""
    options = OpenOptions(device=device, threads=threads)
    feeds = golden.feeds(_TIMING_ROWS)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(
                closing(open_built(engines.get(backend(name)), model.subjects[name], options))
            )
            for name in names
        }
        chosen = names[0]
        if len(names) > 1:
            chosen = min(names, key=lambda name: _shortest_run(sessions[name], feeds))
        stack.pop_all()
    for name, session in sessions.items():
        if name != chosen:
            session.close()
    return chosen, sessions[chosen]


def again(name: str, model: Model, device: str, threads: int) -> Session:
    """Opens an engine that `fastest` has opened, once more."""
    options = OpenOptions(device=device, threads=threads)
    return open_built(engines.get(backend(name)), model.subjects[name], options)


def _shortest_run(session: Session, feeds: Feeds) -> float:
    """Returns the seconds of the shortest run; repeats runs for `_TIMING_SECONDS`."""
    session.run(feeds)
    times: list[float] = []
    end = time.perf_counter() + _TIMING_SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    return min(times)
