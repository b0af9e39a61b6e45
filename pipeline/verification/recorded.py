"""Outputs for golden rows that something else recorded, in the place of a session."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engines.contract import Array, Feeds, Outputs, Session
from engines.errors import DeployError
from pipeline.golden.file import Reference
from pipeline.verification.batches import Wrapped


class Recorded(Wrapped):
    """Answers golden rows with recorded outputs; see `engines.contract.Session`.

    Args:
        session: The session that computed them.
        golden: The rows' inputs.
        outputs: The outputs of each row, by its number.
    """

    def __init__(
        self, session: Session, golden: Reference, outputs: Mapping[int, Mapping[str, Array]]
    ) -> None:
        super().__init__(session)
        self.batch = None
        self._batched = golden.batched
        self._outputs: dict[bytes, Mapping[str, Array]] = {}
        for row, case in enumerate(golden.cases):
            if row not in outputs:
                raise DeployError(f"the output of golden row {case!r} was not recorded")
            self._outputs[_key({n: a[row] for n, a in golden.inputs.items()})] = outputs[row]

    def run(self, feeds: Feeds) -> Outputs:
        """Takes golden rows; returns what was recorded for them."""
        if not self._batched:
            return dict(self._outputs[_key(feeds)])
        count = len(next(iter(feeds.values())))
        rows = [self._outputs[_key({n: a[row] for n, a in feeds.items()})] for row in range(count)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _key(row: Feeds) -> bytes:
    return b"".join(row[name].tobytes() for name in sorted(row))
