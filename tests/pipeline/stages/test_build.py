"""The options of the build stage."""

import pytest

from engines.errors import UsageError
from pipeline.stages import build


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, (1, 8, 256)),
        ({"batch_max": 4}, (1, 4, 4)),
        ({"batch_opt": 512}, (1, 512, 512)),
        ({"batch_min": 16}, (16, 16, 256)),
        ({"batch_min": 300}, (300, 300, 300)),
        ({"batch_opt": 2, "batch_max": 4}, (1, 2, 4)),
    ],
)
def test_batch_sizes_that_are_not_given_follow_those_that_are(
    given: dict[str, int], sizes: tuple[int, int, int]
) -> None:
    resolved = build.resolve(build.Params("lenet", engine="tensorrt", **given))
    assert (resolved.batch_min, resolved.batch_opt, resolved.batch_max) == sizes


def test_batch_sizes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="min 1, opt 8, max 4"):
        build.resolve(build.Params("lenet", engine="tensorrt", batch_opt=8, batch_max=4))
