"""Opens a graph or engine and judges it, or reports why this machine cannot run it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import engines
from engines.checks import check_device, choose_device
from engines.contract import Array, Engine, Feeds, OpenOptions, Outputs, Session
from engines.errors import CrashedError, DeployError, NotAvailableError, UsageError
from exporters import PRECISIONS, onnx_files
from pipeline.golden import file as goldens
from pipeline.verification.batches import Wrapped, rows_to_run
from pipeline.verification.graph_file import as_it_says
from pipeline.verification.graph_range import out_of_range
from pipeline.verification.verdict import (
    COMPUTED_IN,
    Status,
    Verdict,
    judge,
    not_run,
    with_audit,
)
from pipeline.verification.weight_audit import audit_model, program_beside
from pipeline.workflow import console, hints, records, worker, worker_child
from pipeline.workflow.artifacts import GRAPH_SUBJECT, graph_of, is_engine, record_beside
from pipeline.workflow.digests import sha256_file

# The engine that runs the exported graph itself, unoptimised, when that is the subject.
GRAPH_RUNNER = "onnxruntime"
_NAMED = 3  # how many values that leave the range a reason names


def runner(subject: str) -> str:
    """Returns the name of the engine that runs a subject."""
    return GRAPH_RUNNER if subject == GRAPH_SUBJECT else subject


def prove(
    subject: str,
    path: Path,
    golden_path: Path,
    precision: str,
    *,
    device: str,
    threads: int,
    images: Callable[[], Array] | None = None,
    elsewhere: bool = False,
    or_failed: bool = False,
) -> Verdict:
    """Returns the verdict on a file, which a child process opens and runs.

    It is "not run" if this machine cannot run the file, and "crashed" if the process died or went
    beyond a limit; see `worker.call`.

    Args:
        subject: "graph", or the engine that `path` was built for.
        golden_path: The golden file of the graph.
        images: Reads the test set, uint8 `[count, channels, height, width]`; without it top-1 is
            compared on the golden file's own images. Only the first images are used, as many as
            the golden file has labels for.
        elsewhere: The graph may be another tool's, so its weights may have another form.
        or_failed: Return the verdict "failed" if the file cannot be opened or run, so that other
            engines are judged all the same.

    Raises:
        UsageError: The golden file is for another precision, or the device does not exist.
        DeployError: A file cannot be read, unless `or_failed`.
    """
    status: Status
    try:
        return worker.call(
            f"opening {subject}",
            prove_here,
            subject,
            path,
            golden_path,
            precision,
            device=device,
            threads=threads,
            images=images,
            elsewhere=elsewhere,
        )
    except (UsageError, NotAvailableError):
        raise
    except DeployError as error:
        if not isinstance(error, CrashedError) and not or_failed:
            raise
        status = "crashed" if isinstance(error, CrashedError) else "failed"
        return Verdict(subject=subject, status=status, precision=precision, reason=error.message)


def prove_here(
    subject: str,
    path: Path,
    golden_path: Path,
    precision: str,
    *,
    device: str,
    threads: int,
    images: Callable[[], Array] | None = None,
    elsewhere: bool = False,
) -> Verdict:
    """Returns the verdict on a file, opened and run in this process; see `prove`."""
    check_device(device)
    golden = goldens.load(golden_path)
    if golden.precision != precision:
        raise UsageError(
            f"{golden_path} is for {golden.precision}, not for {precision}",
            f"give --precision {golden.precision}, or another golden file",
        )
    audit = model = None
    if runner(subject) == GRAPH_RUNNER:
        # Read before the engine reads it, to check that all its data is in its own folder.
        model = onnx_files.read(path, data=subject == GRAPH_SUBJECT)
        if subject == GRAPH_SUBJECT:
            program = partial(program_beside, golden_path)
            follow = elsewhere and not PRECISIONS[precision].quantized
            audit = audit_model(model, golden.weights, path, program if follow else None)
    asked = OpenOptions(device, threads)
    if model is not None and subject == GRAPH_SUBJECT:
        with as_it_says(model, path) as file:
            model = None  # a large graph is not held while it is run
            verdict = _judge(subject, file, golden, precision, asked, images)
            if file != path:
                facts = {**verdict.facts, COMPUTED_IN: precision}
                verdict = dataclasses.replace(verdict, facts=facts)
        if verdict.status == "mismatch" and (beyond := out_of_range(onnx_files.read(path), golden)):
            more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
            reason = f"{verdict.reason}; {'; '.join(beyond[:_NAMED])}{more}"
            verdict = dataclasses.replace(verdict, reason=reason)
    else:
        verdict = _judge(subject, path, golden, precision, asked, images)
    return verdict if audit is None else with_audit(verdict, audit)


def require_fit(engine: Engine, path: Path) -> None:
    """Checks the record beside a built engine, before any of the engine is loaded.

    Raises:
        NotAvailableError: It was built for another version or GPU than this machine has, or is
            not the file that was recorded.
    """
    record = records.load(record_beside(path))
    if record is None:
        return
    digests = [output["sha256"] for name, output in record.outputs.items() if is_engine(name)]
    digest = sha256_file(path)
    why = engine.incompatibility(record.facts, record.params)
    if digests and digest not in digests:
        why = f"its SHA-256 is {digest}, but its record has {digests[0]}"
    if why:
        where, params = engine.rebuild(record.params)
        raise NotAvailableError(
            f"{path} is not loaded: {why}",
            f"build it {where}: `{hints.again(record.stage, params)}`",
        )


def open_built(engine: Engine, path: Path, options: OpenOptions) -> Session:
    """Opens a built engine, once the record beside it fits this machine.

    Raises:
        NotAvailableError: See `require_fit` and `choose_device`.
    """
    return engine.open(path, fitted(engine, path, options))


def fitted(engine: Engine, path: Path, options: OpenOptions) -> OpenOptions:
    """Returns options with the device and the weights, once the record beside the file fits.

    Raises:
        NotAvailableError: See `require_fit` and `choose_device`.
    """
    device = choose_device(engine, options.device)
    require_fit(engine, path)
    return dataclasses.replace(options, device=device, weights=_weights_for(path))


def _weights_for(path: Path) -> Path | None:
    """Returns the graph with the weights, if the record says the engine was built without."""
    record = records.load(record_beside(path))
    if record is None or not record.params.get("strip_weights"):
        return None
    return graph_of(path)


def _judge(
    subject: str,
    path: Path,
    golden: goldens.Golden,
    precision: str,
    asked: OpenOptions,
    images: Callable[[], Array] | None,
) -> Verdict:
    engine, device = engines.get(runner(subject)), asked.device
    state = engine.available()
    if not state.run:
        return not_run(subject, precision, state.reason)
    kind = device.partition(":")[0]
    if subject == GRAPH_SUBJECT and kind == "cuda":
        return not_run(subject, precision, f"the graph itself is run on the CPU, not on {device!r}")
    if kind in ("cpu", "cuda") and kind not in engine.devices:
        return not_run(subject, precision, f"it does not run on {device!r}")
    options = dataclasses.replace(
        asked,
        device=choose_device(engine, device),
        optimize=subject != GRAPH_SUBJECT,
    )
    try:
        session = open_built(engine, path, options)
    except NotAvailableError as error:  # such as a dtype without kernels
        return not_run(subject, precision, error.message)
    worker_child.doing(f"running {subject}")
    with closing(session):
        test, count = None, len(golden.test_labels)
        if images is not None and count:
            test = {golden.input_specs[0].name: images()[:count]}
        total = rows_to_run(golden, session.batch, count if test else 0)
        with console.bar(f"verify {subject}", total) as bar:
            watched = _Watched(session, bar)
            verdict = judge(subject, watched, golden, test)
        console.say(f"verify {subject}: {watched}")
    return dataclasses.replace(verdict, facts={**engine.fingerprint(), "device": session.device})


class _Watched(Wrapped):
    """A session that reports its progress."""

    def __init__(self, session: Session, bar: console.Bar) -> None:
        super().__init__(session)
        self._bar = bar
        self._rows = 0
        self._seconds = 0.0

    def run(self, feeds: Feeds) -> Outputs:
        start = time.perf_counter()
        outputs = super().run(feeds)
        self._seconds += time.perf_counter() - start
        first = next(iter(feeds.values()))
        rows = len(first) if first.ndim else 1
        self._rows += rows
        self._bar.advance(rows, f"{self._speed():,.0f} samples/s")
        return outputs

    def _speed(self) -> float:
        return self._rows / self._seconds if self._seconds else 0.0

    def __str__(self) -> str:
        return f"{self._rows:,} samples, {self._speed():,.0f} a second"
