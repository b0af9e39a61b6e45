"""Options of the build stage."""

import dataclasses

import pytest

from engines.contract import BuildOptions
from engines.errors import UsageError
from pipeline.stages import build


def test_every_option_of_the_stage_reaches_the_engine() -> None:
    usual = build.Params(model="lenet", engine="tensorrt")
    others = {
        "batch_min": 2,
        "batch_opt": 9,
        "batch_max": 300,
        "workspace": 7,
        "optimization_level": 3,
        "target_sm": (86,),
        "profiles": ("batch=3",),
    }
    flags = {f.name: True for f in dataclasses.fields(build.Params) if f.default is False}
    before = build._options(usual)
    after = build._options(dataclasses.replace(usual, **others, **flags))
    internal = {"sizes", "progress", "note"}
    for field in dataclasses.fields(BuildOptions):
        if field.name not in internal:
            assert getattr(before, field.name) != getattr(after, field.name), field.name


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
