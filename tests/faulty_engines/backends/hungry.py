"""An engine that takes memory until it is stopped."""

from pathlib import Path

from engines.contract import OpenOptions, Session
from tests.faulty_engines.base import Faulty

LARGEST = 4 << 30  # bytes, so that a test of a limit that fails does not fill the machine


class Hungry(Faulty):
    def open(self, built: Path, options: OpenOptions) -> Session:
        taken = []
        while sum(map(len, taken)) < LARGEST:
            taken.append(b"\1" * (64 << 20))
        return super().open(built, options)


ENGINE = Hungry("hungry")
