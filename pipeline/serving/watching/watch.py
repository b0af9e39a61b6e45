"""Sends golden rows to a server at a steady rate, and tells what changes."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from engines.contract import Session
from engines.errors import DeployError, UsageError
from pipeline.benchmarking.intervals import percentiles
from pipeline.golden.file import Golden
from pipeline.serving.client import Client, Server, wait_until_ready
from pipeline.serving.proof import WireSession
from pipeline.serving.watching.metrics import Metrics
from pipeline.serving.watching.monitor import Alarm, Monitor, Window
from pipeline.serving.watching.slowdown import Slowdown, windows_in_a_row
from pipeline.serving.watching.surroundings import Snapshot, Surroundings, changes
from pipeline.verification.batches import Calls, run_padded

# Times of a day that are kept: enough for p99.9, at any rate of requests.
_KEPT_TIMES = 100_000


@dataclass(frozen=True)
class Settings:
    """How a server is watched.

    Attributes:
        rate: Golden rows sent in a second, at most.
        window: Requests of a window.
        baseline: Windows that later ones are compared with.
        tolerance: A part that a window may be longer without counting as slow.
        false_alarms: The largest rate of false alarms of slowness, for each window.
        duration: Seconds to watch; None means until the process is interrupted.
        stop: End with the first alarm.
    """

    rate: float = 1.0
    window: int = 20
    baseline: int = 30
    tolerance: float = 0.1
    false_alarms: float = 1e-4
    duration: float | None = None
    stop: bool = False


@dataclass
class Day:
    """What is attested of one day.

    Attributes:
        begins: The moment of the first request, in UTC.
        replies: How many requests were answered.
        times: Seconds of each reply, or of as many as are kept, chosen at random (Vitter, ACM
            Transactions on Mathematical Software 11, 1985, algorithm R).
        failures: How many requests failed.
        windows: How many were judged.
        floors: The largest error in units of the noise floor.
        events: Alarms and changes, with their moments.
    """

    begins: datetime
    replies: int = 0
    times: list[float] = field(default_factory=list)
    failures: int = 0
    windows: int = 0
    floors: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)

    def reply(self, seconds: float) -> None:
        """Counts a reply, and keeps its time or not."""
        self.replies += 1
        if len(self.times) < _KEPT_TIMES:
            self.times.append(seconds)
        elif (place := random.randrange(self.replies)) < _KEPT_TIMES:  # noqa: S311 - no secret
            self.times[place] = seconds

    def document(self, ends: datetime) -> dict[str, Any]:
        """Returns the JSON form."""
        known = percentiles(self.times) if self.times else {}
        return {
            "from": self.begins.isoformat(timespec="seconds"),
            "to": ends.isoformat(timespec="seconds"),
            "replies": self.replies,
            "failures": self.failures,
            "windows": self.windows,
            # Nothing is known without a window, and of outputs that cannot be compared.
            "error_floors": self.floors if self.windows and np.isfinite(self.floors) else None,
            "latency": {name: dataclasses.asdict(value) for name, value in known.items()},
            "events": self.events,
        }


@dataclass(frozen=True)
class Watched:
    """What a watch has seen.

    Attributes:
        model: The name of the model on the server.
        days: The JSON form of each day, the last one perhaps not complete.
        alarms: How often each kind of alarm began.
        active: The alarms that had not ended at the end, with their reasons.
        interrupted: The signal that ended it; None if its time was over.
    """

    model: str
    days: list[dict[str, Any]]
    alarms: dict[str, int]
    active: dict[str, str]
    interrupted: KeyboardInterrupt | None = None


class Watch:
    """One server that is watched.

    Attributes:
        monitor: What judges the replies.
        model: The name of the model on the server.
    """

    def __init__(
        self,
        server: Server,
        golden: Golden,
        settings: Settings,
        *,
        say: Callable[[str], None],
        metrics: Metrics | None = None,
        attest: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Connects to the server.

        Args:
            say: Takes a line for each event.
            attest: Takes the JSON form of each day, with the server's facts.

        Raises:
            DeployError: The server does not answer.
            NotAvailableError: It is not ready in time, or a library is missing.
            UsageError: It has no such model, or takes other inputs than the golden file.
        """
        self._settings, self._say, self._metrics = settings, say, metrics
        self._attest = attest
        needed = windows_in_a_row(settings.baseline, settings.false_alarms)
        slowdown = Slowdown(settings.baseline, needed, settings.tolerance)
        self.monitor = Monitor(golden, settings.window, slowdown)
        self._server = dataclasses.replace(server, name=wait_until_ready(server))
        self.model = self._server.name
        client = Client(self._server)
        try:
            metadata = client.metadata(self._server.name, self._server.version)
            self._session: Session = WireSession(client, self._server, metadata, golden)
            _require_alike(self._session, golden, server.url)
            words = (self._server.url, self._server.name, self._server.version)
            self._surroundings = Surroundings(client, *words)
            self._first: Snapshot | None = None
        except BaseException:
            client.close()
            raise
        if not golden.batched:
            self._session = Calls(self._session)
        self._alarms: Counter[str] = Counter()
        self._days: list[dict[str, Any]] = []
        self._day = Day(_now())

    def run(self) -> Watched:
        """Watches until the time is over, the first alarm if that is wanted, or an interruption."""
        interrupted = None
        with closing(self._session):
            try:
                for row in self._paced(_rows(len(self.monitor.golden.cases))):
                    for alarm in self._ask(row):
                        self._tell(alarm)
                    if self._settings.stop and self._alarms:
                        break
            except KeyboardInterrupt as error:  # the usual end of a watch without a duration
                interrupted = error
            finally:
                self._finish()
        active = {str(kind): reason for kind, reason in self.monitor.active.items()}
        return Watched(self.model, self._days, dict(self._alarms), active, interrupted)

    def _finish(self) -> None:
        """Judges the replies that are left, and attests the last day."""
        before = self.monitor.last
        for alarm in self.monitor.finish():
            self._tell(alarm)
        self._count(before)
        self._end_day(_now())

    def _count(self, before: Window | None) -> bool:
        """Counts the last window, and returns True, unless it is the one before."""
        window = self.monitor.last
        if window is None or window is before:
            return False
        self._day.windows += 1
        self._day.floors = max(self._day.floors, window.floors)
        if self._metrics is not None:
            self._metrics.window(window)
        return True

    def _paced(self, rows: Iterator[int]) -> Iterator[int]:
        """Yields rows at the rate, until the time is over. A slow server gets fewer, not more."""
        begin = following = time.monotonic()
        for row in rows:
            now = time.monotonic()
            if self._settings.duration is not None and now - begin >= self._settings.duration:
                return
            if now < following:
                time.sleep(following - now)
            following = max(following, time.monotonic() - 1 / self._settings.rate)
            following += 1 / self._settings.rate
            yield row

    def _ask(self, row: int) -> list[Alarm]:
        """Sends a row; returns what began or ended with its reply."""
        if (now := _now()).date() != self._day.begins.date():
            self._end_day(now)
        golden = self.monitor.golden
        feeds = {name: np.ascontiguousarray(a[row : row + 1]) for name, a in golden.inputs.items()}
        start = time.perf_counter()
        try:
            outputs = run_padded(self._session, feeds, 1)
        except DeployError as error:
            self._day.failures += 1
            if self._metrics is not None:
                self._metrics.failure()
            return self.monitor.failure(error.message)
        seconds = time.perf_counter() - start
        self._day.reply(seconds)
        before = self.monitor.last
        alarms = self.monitor.reply(row, outputs, seconds)
        if self._metrics is not None:
            self._metrics.reply(seconds)
        if self._count(before):
            self._look(alarms)
        return alarms

    def _look(self, alarms: list[Alarm]) -> None:
        """Looks around after a window, and tells what has changed there."""
        now = self._surroundings.look()
        if self._first is None:
            self._first = now
            return
        begun = any(alarm.begins for alarm in alarms)
        told = changes(self._first, now)
        # Loads and clocks go up and down; they matter where something else has happened.
        lasting = changes(Snapshot(self._first.facts), Snapshot(now.facts)) if now.facts else []
        for words in told if begun else lasting:
            self._event("changed", words)
        if now.facts:
            self._first = dataclasses.replace(self._first, facts=now.facts)

    def _tell(self, alarm: Alarm) -> None:
        if alarm.begins:
            self._alarms[alarm.kind] += 1
        if self._metrics is not None:
            self._metrics.alarm(alarm)
        self._event(alarm.kind if alarm.begins else f"{alarm.kind} ended", alarm.reason)

    def _event(self, kind: str, reason: str) -> None:
        moment = _now().isoformat(timespec="seconds")
        self._day.events.append({"time": moment, "kind": kind, "reason": reason})
        self._say(f"{moment} {kind}: {reason}")

    def _end_day(self, now: datetime) -> None:
        """Attests the day, and begins the next one."""
        day = self._day.document(now)
        self._days.append(day)
        if self._attest is not None:
            facts = {} if self._first is None else self._first.facts
            self._attest({**day, "url": self._server.url, "model": self.model, "server": facts})
        self._day = Day(now)


def _now() -> datetime:
    return datetime.now(UTC)


def _rows(count: int) -> Iterator[int]:
    """Yields the indices of golden rows, each as often as the others, in an order that changes."""
    order = np.random.default_rng(0)
    while True:
        yield from map(int, order.permutation(count))


def _require_alike(session: Session, golden: Golden, url: str) -> None:
    """Raises UsageError if a server's model takes or gives other tensors than the golden file."""
    from pipeline.verification.verdict import signature_faults

    if faults := signature_faults(session.inputs, session.outputs, golden):
        raise UsageError(
            f"the model at {url} is another one: {'; '.join(faults)}",
            "name the model with --model-name, or the precision of the bundle with --precision",
        )
