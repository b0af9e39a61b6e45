"""An engine that reads a null pointer when it is opened."""

import ctypes
from pathlib import Path

from engines.contract import OpenOptions, Session
from tests.faulty_engines.base import Faulty


class Segfaulting(Faulty):
    def open(self, _built: Path, _options: OpenOptions) -> Session:
        ctypes.string_at(0)
        raise AssertionError


ENGINE = Segfaulting("segfaulting")
