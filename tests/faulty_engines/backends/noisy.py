"""An engine that prints in every way that libraries know."""

import logging
import os
import sys
import warnings
from pathlib import Path

from engines.contract import OpenOptions, Session
from tests.faulty_engines.base import Faulty


def clatter() -> None:
    os.write(2, b"clatter of native code\n")
    os.write(1, b"clatter of native code on stdout\n")
    print("clatter on stderr", file=sys.stderr)  # noqa: T201
    logging.getLogger("noisy").error("clatter in a log")
    warnings.warn("clatter as a warning", stacklevel=1)
    own = logging.getLogger("noisy.own")
    own.addHandler(logging.StreamHandler())
    own.warning("clatter in a log of its own")


class Noisy(Faulty):
    def open(self, built: Path, options: OpenOptions) -> Session:
        clatter()
        return super().open(built, options)


ENGINE = Noisy("noisy")
