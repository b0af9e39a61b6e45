"""An engine whose build aborts."""

import os
from pathlib import Path

from engines.contract import BuildOptions
from engines.layer_report import Layer
from tests.faulty_engines.base import Faulty


class Aborting(Faulty):
    def build(self, _source: Path, _target: Path, _options: BuildOptions) -> tuple[Layer, ...]:
        os.write(2, b"last words of a library\n")
        os.abort()


ENGINE = Aborting("aborting")
