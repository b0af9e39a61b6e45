"""The chain of digests."""

import pytest

from engines.errors import DeployError
from pipeline.bundling import provenance
from pipeline.workflow.records import Record


def test_a_link_to_nothing_is_found() -> None:
    record = Record("a", "", {}, {"x": {"sha256": "1", "record": "b.json"}}, {}, {}, {}, "", 0.0)
    with pytest.raises(DeployError, match="was made from x, which no record in the bundle made"):
        provenance.check({"a.json": record}, {})
