"""Golden inputs of a user's own rows."""

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.golden import file as goldens
from tests.conftest import Result
from tests.unusual import graph_of

Assay = Callable[..., Result]


@pytest.mark.slow(1)
def test_large_examples_of_a_small_dtype_are_accepted(
    own: Callable[[str], str], assay: Assay
) -> None:
    name = own("large")
    result = assay("export", name)
    assert result.code == 0, result.err
    assert np.isfinite(goldens.load(graph_of(name).with_name("golden.npz")).inputs["x"]).all()
    assert assay("verify", name).code == 0
