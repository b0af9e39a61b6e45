"""The threads that use sessions at the same time, and what a stretch of their time costs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.contract import Feeds, Session
from engines.errors import DeployError
from pipeline.benchmarking.contention import Others

# How often a thread that waits looks whether the run has ended, in seconds.
LOOK = 0.05

clock = time.perf_counter


class Meter:
    """What a stretch of time cost."""

    def __init__(self) -> None:
        self._others = Others()
        self._cpu = time.process_time()
        self.began = self.ended = clock()
        self.cpu_seconds = 0.0
        self.others: float | None = None

    def stop(self) -> None:
        """Ends the stretch."""
        self.ended = clock()
        self.cpu_seconds = time.process_time() - self._cpu
        self.others = self._others.part()

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began


class Clients:
    """The threads of a run, one for each session.

    Attributes:
        began: When they started to work.
        done: Set when they are to stop, and when one of them has failed.
        failure: The message of the first DeployError that a session raised, or "".
    """

    def __init__(self, sessions: Sequence[Session], feeds: Feeds) -> None:
        self._sessions, self._feeds = sessions, feeds
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self._warm = threading.Semaphore(0)
        self._go = threading.Event()
        self.began = 0.0
        self.done = threading.Event()

    @property
    def failure(self) -> str:
        messages = (error.message for error in self._errors if isinstance(error, DeployError))
        return next(messages, "")

    @contextmanager
    def working(self, client: Callable[[Session], None]) -> Iterator[None]:
        """Opens the threads, each of which runs its session once; ends them after the body.

        Raises:
            Exception: A session raised something other than a DeployError.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            for session in self._sessions:
                thread = threading.Thread(target=self._work, args=(session, client), daemon=True)
                self._threads.append(thread)
                thread.start()
            for _ in self._sessions:
                self._warm.acquire()
            yield
        finally:
            self.done.set()
            self._go.set()
            self.join()
            if collecting:
                gc.enable()
        for error in self._errors:
            if not isinstance(error, DeployError):
                raise error

    def start(self) -> None:
        """Lets the threads call their clients."""
        self.began = clock()
        self._go.set()

    def join(self, seconds: float | None = None) -> None:
        """Waits for the threads to end, at most so many seconds."""
        deadline = None if seconds is None else clock() + seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0, deadline - clock()))

    def sleep_until(self, moment: float) -> bool:
        """Sleeps until a moment of `clock`; returns False, at once or soon, if work is done."""
        while (left := moment - clock()) > 0 and not self.done.is_set():
            time.sleep(min(left, LOOK))
        return not self.done.is_set()

    def _work(self, session: Session, client: Callable[[Session], None]) -> None:
        wake_on_time()
        try:
            try:
                session.run(self._feeds)  # may compile something
            finally:
                self._warm.release()
            self._go.wait()
            client(session)
        except Exception as error:
            self._errors.append(error)
            self.done.set()


def wake_on_time() -> None:
    """Asks Linux to end this thread's sleeps on time; by default it ends them up to 50 us late."""
    with suppress(OSError):
        Path(f"/proc/{threading.get_native_id()}/timerslack_ns").write_text("1")
