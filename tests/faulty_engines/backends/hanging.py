"""An engine whose first run does not end."""

import signal
import time
from pathlib import Path

from engines.contract import Feeds, OpenOptions, Outputs, Session
from tests.faulty_engines.base import Faulty


class Hanging(Faulty):
    def open(self, built: Path, options: OpenOptions) -> Session:
        session = super().open(built, options)
        session.run = _wait
        return session


def _wait(_feeds: Feeds) -> Outputs:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


ENGINE = Hanging("hanging")
