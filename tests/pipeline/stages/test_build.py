"""Options of the build stage."""

import dataclasses

from engines.contract import BuildOptions
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
