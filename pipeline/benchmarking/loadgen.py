"""MLPerf's LoadGen over open sessions: it sends the queries, times them, and judges its own run."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.checks import import_vendor
from engines.contract import Array, Outputs, Session
from engines.errors import DeployError
from pipeline.benchmarking.clients import wake_on_time
from pipeline.benchmarking.load import closed

INSTALL = "pip install mlcommons-loadgen"
SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
# In these, LoadGen sends the next query when the last one is answered.
STREAMS = SCENARIOS[:2]
# MLPerf's number of samples in a query of MultiStream.
SAMPLES = 8
# Part of the throughput that Server is asked for if no rate is given.
SERVER_PART = 0.5
# How long sessions are timed beforehand, since LoadGen asks how many queries it is to prepare.
_ESTIMATE_SECONDS = 0.3
# Offline is one query, which has to take the least duration even if the estimate was low.
_SPARE = 1.25
# After a failure, queries are answered without a result; those of a stream no faster than this.
_FAILED_SECONDS = 0.01
_FAILURE_HINT = "name the other engines with --engine, or give fewer sessions"
_SUMMARY, _ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"


@dataclass(frozen=True)
class Settings:
    """What LoadGen is asked for.

    Attributes:
        scenario: One of `SCENARIOS`.
        accuracy: Send each row once and log the outputs; else measure.
        seconds: The least duration of a measurement.
        rate: Queries/s of Server; None is `SERVER_PART` of the throughput.
        p99: The time in seconds within which Server has to answer 99 of 100 queries.
        batch: Rows of one inference in Offline.
        seed: Seed of the order of the rows and of the arrivals.
    """

    scenario: str
    accuracy: bool
    seconds: float
    rate: float | None
    p99: float
    batch: int
    seed: int


@dataclass(frozen=True)
class Summary:
    """What LoadGen's own summary says.

    Attributes:
        valid: Its verdict on the run; None in accuracy mode, which has none.
        figures: Its numbers, by their names there.
        reasons: Why the run is not valid, in its words.
        errors: How many errors it logged.
    """

    valid: bool | None
    figures: dict[str, float]
    reasons: tuple[str, ...]
    errors: int


class Library:
    """Rows that LoadGen asks for by number, all in memory.

    Args:
        inputs: By name, `[rows, ...]`.
        batched: The graph has a batch axis; otherwise each row is one inference.
    """

    def __init__(self, inputs: Mapping[str, Array], *, batched: bool) -> None:
        self._inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self.batched = batched
        self.count = len(next(iter(inputs.values())))

    def feeds(self, rows: Sequence[int]) -> dict[str, Array]:
        """Returns the inputs of one inference on rows, by their numbers."""
        if not self.batched:
            return {name: np.array(a[rows[0]], order="C") for name, a in self._inputs.items()}
        if len(rows) == 1:  # without a copy
            return {name: a[rows[0] : rows[0] + 1] for name, a in self._inputs.items()}
        return {name: a[[*rows]] for name, a in self._inputs.items()}

    def split(self, outputs: Outputs) -> Iterator[dict[str, Array]]:
        """Yields the outputs of each row of an inference."""
        if not self.batched:
            yield outputs
            return
        for row in range(len(next(iter(outputs.values())))):
            yield {name: array[row] for name, array in outputs.items()}


def run(
    sessions: Sequence[Session], library: Library, settings: Settings, folder: Path
) -> tuple[Summary, dict[int, dict[str, Array]]]:
    """Runs one scenario; returns LoadGen's summary, and in accuracy mode each row's outputs.

    The outputs are read from LoadGen's log, by the number of the row.

    Args:
        sessions: Serve Offline and Server at the same time; the streams are served by the first.
        folder: Where LoadGen writes its logs.

    Raises:
        NotAvailableError: LoadGen is not installed.
        DeployError: A session failed, or LoadGen's logs cannot be read.
    """
    loadgen = import_vendor("mlperf_loadgen", INSTALL)
    system = _System(loadgen, sessions, library, settings)
    test = _test_settings(loadgen, sessions, library, settings)
    log, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    log.log_output, log.enable_trace = output, False
    with system.working():
        under_test = loadgen.ConstructSUT(system.issue, lambda: None)
        samples = loadgen.ConstructQSL(
            library.count, library.count, lambda _rows: None, lambda _rows: None
        )
        try:
            wake_on_time()  # LoadGen waits for arrivals in this thread
            # It would read a file of this name in the current folder otherwise.
            audit = str(folder / "audit.config")
            loadgen.StartTestWithLogSettings(under_test, samples, test, log, audit)
        finally:
            loadgen.DestroyQSL(samples)
            loadgen.DestroySUT(under_test)
    try:
        summary = parse((folder / _SUMMARY).read_text(encoding="utf-8"))
        answers = system.answers(folder / _ACCURACY) if settings.accuracy else {}
    except (OSError, ValueError, KeyError) as error:
        raise DeployError(
            f"LoadGen's logs in {folder} cannot be read: {error}", "see the logs, kept with --log"
        ) from error
    return summary, answers


def parse(text: str) -> Summary:
    """Returns what a summary file says.

    Raises:
        ValueError: It is not a summary of LoadGen.
    """
    said, _, _ = text.partition("Test Parameters Used")
    verdict = re.search(r"^Result is : (VALID|INVALID)$", said, re.MULTILINE)
    errors = re.search(r"^(?:(\d+) ERRORS?|No errors) encountered", text, re.MULTILINE)
    if errors is None:
        raise ValueError("the summary does not say how many errors there were")
    figures = {
        name: float(value)
        for name, value in re.findall(r"^(\S.*?) *: ([\d.e+]+)$", said, re.MULTILINE)
    }
    reasons = re.findall(r"^  (\S.*?) ?: NO$", said, re.MULTILINE)
    listed = re.split(r"^ \* ", said.partition("=\nAdditional Stats")[0], flags=re.MULTILINE)[1:]
    words = [" ".join(re.sub(r"\n\S.*", "", part, flags=re.S).split()) for part in listed]
    valid = None if verdict is None else verdict[1] == "VALID"
    return Summary(
        valid=valid,
        figures=figures,
        reasons=() if valid is not False else (*(f"{name}: no" for name in reasons), *words),
        errors=int(errors[1] or 0),
    )


def _test_settings(
    loadgen: Any, sessions: Sequence[Session], library: Library, settings: Settings
) -> Any:
    """Returns LoadGen's settings, with the estimates that it asks for from a short run."""
    scenario = settings.scenario
    test = loadgen.TestSettings()
    test.scenario = getattr(loadgen.TestScenario, scenario)
    modes = loadgen.TestMode
    test.mode = modes.AccuracyOnly if settings.accuracy else modes.PerformanceOnly
    test.min_duration_ms = round(settings.seconds * 1000)
    test.min_query_count = 1
    test.qsl_rng_seed = test.sample_index_rng_seed = test.schedule_rng_seed = settings.seed
    test.multi_stream_samples_per_query = SAMPLES
    test.server_target_latency_ns = round(settings.p99 * 1e9)
    rows = _rows_of_a_run(sessions[0], library, settings)
    served = closed(
        sessions[:1] if scenario in STREAMS else sessions,
        library.feeds([row % library.count for row in range(rows)]),
        seconds=_ESTIMATE_SECONDS,
        rows=rows,
    )
    if served.throughput is None or served.failure:
        raise DeployError(served.failure or "a session answers no request", _FAILURE_HINT)
    rate = served.throughput.value
    latency = max(1, round(1e9 / rate))
    test.single_stream_expected_latency_ns = latency
    test.multi_stream_expected_latency_ns = latency * -(-SAMPLES // rows)
    test.offline_expected_qps = rate * rows * _SPARE
    test.server_target_qps = settings.rate or rate * SERVER_PART
    return test


def _rows_of_a_run(session: Session, library: Library, settings: Settings) -> int:
    """Returns how many rows an inference has in a scenario; a session may accept fewer or more."""
    wanted = {"MultiStream": SAMPLES, "Offline": settings.batch}.get(settings.scenario, 1)
    low, high = session.batch or (1, wanted)
    return max(low, min(high, wanted)) if library.batched else 1


class _System:
    """The system under test: LoadGen's queries, served by sessions.

    LoadGen calls `issue` from a thread of native code, into which no exception may leave. After a
    failure all queries are answered without a result, so that LoadGen comes to its end.
    """

    def __init__(
        self, loadgen: Any, sessions: Sequence[Session], library: Library, settings: Settings
    ) -> None:
        self._loadgen, self._sessions, self._library = loadgen, sessions, library
        self._settings = settings
        self._size = _rows_of_a_run(sessions[0], library, settings)
        self._queue: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        self._kinds: dict[int, dict[str, tuple[np.dtype[Any], tuple[int, ...]]]] = {}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Serves queries in the block; raises what a session raised."""
        threads = [
            threading.Thread(target=self._work, args=(session,), daemon=True)
            for session in self._sessions
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for _ in threads:
                self._queue.put(None)
            for thread in threads:
                thread.join()
        for error in self._errors:
            raise error

    def issue(self, samples: Sequence[Any]) -> None:
        """Takes one query; LoadGen calls it."""
        asked = [(sample.id, sample.index) for sample in samples]
        parts = [asked[start : start + self._size] for start in range(0, len(asked), self._size)]
        for part in parts:
            # Here if nothing else could run meanwhile: another thread takes some 0.1 ms to wake up.
            # A query that LoadGen sends late because of that counts from the scheduled time.
            if self._settings.scenario in STREAMS or len(self._sessions) == 1:
                self._serve(self._sessions[0], part)
            else:
                self._queue.put(part)

    def _work(self, session: Session) -> None:
        while (part := self._queue.get()) is not None:
            self._serve(session, part)

    def _serve(self, session: Session, part: list[tuple[int, int]]) -> None:
        answers: list[bytes] = []
        if self._errors and self._settings.scenario in STREAMS:
            time.sleep(_FAILED_SECONDS)  # each answer brings the next query
        elif not self._errors:
            try:
                answers = self._answers(session, [row for _, row in part])
            except BaseException as error:
                self._errors.append(error)
        kept = [np.frombuffer(answer, np.uint8) for answer in answers]  # until LoadGen has read it
        responses = [
            self._loadgen.QuerySampleResponse(
                number,
                kept[index].ctypes.data if kept else 0,
                kept[index].nbytes if kept else 0,
            )
            for index, (number, _) in enumerate(part)
        ]
        self._loadgen.QuerySamplesComplete(responses)

    def _answers(self, session: Session, rows: list[int]) -> list[bytes]:
        """Runs rows; returns the outputs of each as LoadGen's log is to hold them, if it does."""
        least = session.batch[0] if session.batch and self._library.batched else 1
        padded = rows + rows[-1:] * (least - len(rows))
        outputs = session.run(self._library.feeds(padded))
        if not self._settings.accuracy:
            return []
        answers = []
        for row, arrays in zip(rows, self._library.split(outputs), strict=False):
            self._kinds[row] = {name: (a.dtype, a.shape) for name, a in arrays.items()}
            answers.append(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
        return answers

    def answers(self, log: Path) -> dict[int, dict[str, Array]]:
        """Returns the outputs of each row that LoadGen's log of an accuracy run holds."""
        outputs: dict[int, dict[str, Array]] = {}
        for entry in json.loads(log.read_text(encoding="utf-8")):
            data, row = bytes.fromhex(entry["data"]), int(entry["qsl_idx"])
            outputs[row] = {}
            start = 0
            for name, (dtype, shape) in self._kinds[row].items():
                count = int(np.prod(shape))
                outputs[row][name] = np.frombuffer(data, dtype, count, start).reshape(shape)
                start += count * dtype.itemsize
        return outputs
