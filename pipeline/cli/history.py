"""`assay bench --history`: whether engines are slower than they were on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import engines
from engines.errors import DeployError, NotMetError
from pipeline.benchmarking.history import TOLERANCE, History, Slower
from pipeline.report.units import times_as_long
from pipeline.workflow import console, lock, worker
from pipeline.workflow.artifacts import ENGINE, GOLDEN, MEASUREMENTS, Paths, lock_file
from pipeline.workflow.digests import read_json, sha256_file
from pipeline.workflow.records import Record
from pipeline.workflow.runner import Outcome, Store


@dataclasses.dataclass(frozen=True)
class _Settled:
    """Whether an engine that took longer than before is slower.

    Attributes:
        status: "slower" if it is, "machine" if it is not, or "open" if that cannot be settled.
        longer: How many times as long it takes as the engine of then, side by side; None if they
            were not run.
    """

    case: Slower
    status: str
    why: str
    longer: dict[str, float] | None = None

    def __str__(self) -> str:
        case = self.case
        load = f"batch {case.batch}" + (f" of {case.size}" if case.size else "")
        return (
            f"{case.name}, {load}: at least {case.low:.2f} times as long as on"
            f" {case.then['started'][:10]}: {self.why}"
        )


def compare(outcome: Outcome, store: Store) -> dict[str, Any]:
    """Compares a run of bench with the earlier ones on this machine, and keeps it.

    Raises:
        NotMetError: An engine is slower than its file of an earlier run, side by side.
    """
    params, record = outcome.params, outcome.record
    measurements = read_json(outcome.outputs[MEASUREMENTS])
    files = {
        name: (_file(name, outcome.outputs), digest) for name, digest in _digests(record).items()
    }
    place = lock_file(store.root, f"{params['model']}/{params['precision']}/history.json")
    with lock.held(place, "history", store.wait):
        history = History(store.root, params["model"], params["precision"])
        entry = history.add(record.started, measurements, record.facts, files)
    slower = history.slower(entry)
    settled = [_settle(case, entry, history, outcome) for case in slower]
    for case in settled:
        console.result(f"{case}")
    earlier = sum(one["machine"] == entry["machine"] for one in history.entries) - 1
    if not settled:
        console.result(
            "no median is surely longer than in the quickest of"
            f" {earlier} earlier run{'s' * (earlier > 1)} on this machine"
            if earlier
            else "this is the first run that is kept for this machine and number of threads"
        )
    document = {"runs": len(history.entries), "longer": [dataclasses.asdict(c) for c in settled]}
    if worse := [case for case in settled if case.status == "slower"]:
        raise NotMetError(
            f"slower than before by more than {TOLERANCE:g} %: "
            + ", ".join(f"{case.case.name} at batch {case.case.batch}" for case in worse),
            "see what changed in the record of the build, or go back to the earlier build",
            document,
        )
    return document


def _digests(record: Record) -> dict[str, str]:
    """Returns the SHA-256 of each engine that was measured."""
    labels = {label.split("/")[-2]: entry for label, entry in record.inputs.items()}
    return {name: labels[name]["sha256"] for name in engines.names() if name in labels}


def _file(engine: str, paths: Paths) -> Path:
    return paths.locate(ENGINE.at(**{**paths.fields, "engine": engine}))


def _settle(case: Slower, entry: dict[str, Any], history: History, outcome: Outcome) -> _Settled:
    """Runs the engine of then beside the one of now, if they differ and that is possible."""
    name = case.name.split()[0]
    then, now = case.then["engines"].get(name), entry["engines"].get(name)
    libraries = [_versions(one, name) for one in (case.then, entry)]
    if libraries[0] != libraries[1]:
        changed = ", ".join(
            f"{key} {old} -> {libraries[1].get(key)}"
            for key, old in libraries[0].items()
            if libraries[1].get(key) != old
        )
        why = f"open, since {changed}, and one process cannot run both; see `assay compare`"
        return _Settled(case, "open", why)
    if then == now:
        return _Settled(case, "machine", "the machine is slower, since the file is the same")
    path = history.file(then)
    if path is None or sha256_file(path) != then:
        return _Settled(case, "open", "open, since the engine of then is gone or has changed")
    try:
        longer = _side_by_side(case, path, outcome)
    except DeployError as error:
        return _Settled(case, "open", f"open, since they cannot be run beside each other: {error}")
    words = (
        f"side by side {longer['value']:.3f} times as long"
        f" ({longer['low']:.3f} to {longer['high']:.3f})"
    )
    if longer["low"] > 1 + TOLERANCE / 100:
        return _Settled(case, "slower", f"{words}: the engine is slower", longer)
    return _Settled(case, "machine", f"{words}: the machine was slower", longer)


def _versions(entry: dict[str, Any], engine: str) -> dict[str, str]:
    own = engines.get(engine).fingerprint()
    return {name: version for name, version in entry["versions"].items() if name in own}


def _side_by_side(case: Slower, earlier: Path, outcome: Outcome) -> dict[str, float]:
    """Returns how many times as long the engine takes as the file of an earlier run."""
    golden = outcome.outputs.locate(GOLDEN.at(**outcome.outputs.fields))
    name = case.name.split()[0]
    return worker.call_alone(
        f"comparing {name} with an earlier run",
        side_by_side_here,
        case,
        {"then": earlier, "now": _file(name, outcome.outputs)},
        golden,
        outcome.params,
    )


def side_by_side_here(
    case: Slower, files: Mapping[str, Path], golden_path: Path, params: Mapping[str, Any]
) -> dict[str, float]:
    """Does what `_side_by_side` does, in this process."""
    from engines.contract import OpenOptions
    from pipeline.benchmarking import several
    from pipeline.benchmarking.comparison import Load
    from pipeline.benchmarking.comparison import compare as timed
    from pipeline.golden import file as goldens
    from pipeline.verification.engine_proof import open_built

    engine = engines.get(case.name.split()[0])
    options = OpenOptions(
        params["device"], params["threads"], cuda_graph=case.name.endswith(" graph")
    )
    golden = goldens.load(golden_path)
    part = next(p for p in (golden, *golden.others) if not case.size or p.size == case.size)
    sessions, others = {}, {}
    with ExitStack() as stack:
        for name, path in files.items():
            opens = partial(open_built, engine, path, options)
            sessions[name] = opens()
            others[name] = several.more(sessions[name], opens, stack)
        results = timed(
            sessions,
            [Load(case.batch, part.feeds(case.batch), case.size)],
            budget=params["budget"],
            seed=params["seed"],
            others=others,
        )
    ratio = next(
        entry["ratio"]
        for entry in results
        if entry["name"] == "now" and entry["boundary"] == "end to end"
    )
    return times_as_long(ratio)
