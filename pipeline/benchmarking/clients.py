"""The threads that use sessions at the same time, and what a stretch of their time costs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.contract import Feeds, Session
from engines.errors import DeployError, FailedError
from pipeline.benchmarking.contention import Others
from pipeline.workflow.signals import SESSION_THREAD

# How often a thread that waits looks whether the run has ended, in seconds.
LOOK = 0.05

# How long a session may take to run for the first time, which may compile something; and how long
# a request may take after that, or this many times as long as the first run, before it counts as
# hung.
FIRST_RUN, PATIENCE, TIMES_FIRST = 1800.0, 60.0, 10
# How long threads get to end after an error or an interruption. A session is not closed in use.
GRACE = 1.0

clock = time.perf_counter


class HungError(FailedError):
    """A session does not return. Its thread cannot be ended, and lasts as long as the process."""


def hung(seconds: float) -> HungError:
    """Returns the error for a session that has not returned for so long."""
    return HungError(
        f"a session has not returned for {seconds:.3g} s", "leave the engine out with --engine"
    )


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
        self._errors: list[BaseException] = []
        self._first_runs: list[float] = []  # of all threads: append is atomic
        self._warm = threading.Semaphore(0)
        self._go = threading.Event()
        self.began = 0.0
        self.done = threading.Event()

    @property
    def failure(self) -> str:
        messages = (error.message for error in self._errors if isinstance(error, DeployError))
        return next(messages, "")

    @property
    def patience(self) -> float:
        """How many seconds a request may take before its session counts as hung."""
        return max(PATIENCE, TIMES_FIRST * max(self._first_runs, default=0.0))

    @contextmanager
    def working(self, client: Callable[[Session], None]) -> Iterator[None]:
        """Opens the threads, each of which runs its session once; ends them after the body.

        An interruption does not wait for sessions that do not return.

        Raises:
            HungError: A session does not return.
            Exception: A session raised something other than a DeployError.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            for session in self._sessions:
                thread = threading.Thread(
                    target=self._work, args=(session, client), name=SESSION_THREAD, daemon=True
                )
                self._threads.append(thread)
                thread.start()
            deadline = clock() + FIRST_RUN
            for _ in self._sessions:
                if not self._warm.acquire(timeout=max(0, deadline - clock())):
                    raise hung(FIRST_RUN)
            yield
            self._stop()
            patience = self.patience
            self.join(patience)
            if any(thread.is_alive() for thread in self._threads):
                raise hung(patience)
        except BaseException:
            self._stop()
            self.join(GRACE)
            raise
        finally:
            if collecting:
                gc.enable()
        for error in self._errors:
            if not isinstance(error, DeployError):
                raise error

    def start(self) -> None:
        """Lets the threads call their clients."""
        self.began = clock()
        self._go.set()

    def join(self, seconds: float) -> None:
        """Waits for the threads to end, at most so many seconds."""
        deadline = clock() + seconds
        for thread in self._threads:
            thread.join(max(0, deadline - clock()))

    def wait_until(self, moment: float) -> None:
        """Waits until a moment of `clock`, but not after work is done: the time is measured."""
        self.done.wait(max(0, moment - clock()))

    def sleep_until(self, moment: float) -> bool:
        """Sleeps until a moment of `clock`; returns False, at once or soon, if work is done."""
        while (left := moment - clock()) > 0 and not self.done.is_set():
            time.sleep(min(left, LOOK))
        return not self.done.is_set()

    def _stop(self) -> None:
        self.done.set()
        self._go.set()

    def _work(self, session: Session, client: Callable[[Session], None]) -> None:
        wake_on_time()
        try:
            try:
                began = clock()
                session.run(self._feeds)
                self._first_runs.append(clock() - began)
            finally:
                self._warm.release()
            self._go.wait()
            client(session)
        except BaseException as error:  # a thread that vanished would be waited for
            self._errors.append(error)
            self.done.set()


def wake_on_time() -> None:
    """Asks Linux to end this thread's sleeps on time; by default it ends them up to 50 us late."""
    with suppress(OSError):
        Path(f"/proc/{threading.get_native_id()}/timerslack_ns").write_text("1")
