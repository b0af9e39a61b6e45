"""An engine that returns noise."""

from pathlib import Path

import numpy as np

from engines.contract import Feeds, OpenOptions, Outputs, Session
from tests.faulty_engines.base import Faulty


class Wrong(Faulty):
    def open(self, built: Path, options: OpenOptions) -> Session:
        session = super().open(built, options)
        run = session.run

        def noise(feeds: Feeds) -> Outputs:
            generator = np.random.default_rng(0)
            return {
                name: generator.normal(size=array.shape).astype(array.dtype)
                for name, array in run(feeds).items()
            }

        session.run = noise
        return session


ENGINE = Wrong("wrong")
