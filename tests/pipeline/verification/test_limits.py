"""The limits are part of the keys of the stages that judge by them."""

from pathlib import Path
from types import ModuleType

import pytest

from pipeline.cli import stage_runs
from pipeline.stages import export, verify
from pipeline.verification import limits
from pipeline.workflow.runner import Store


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder: Path = tmp_path_factory.mktemp("limits")
    store = Store(folder / "artifacts", folder / "dist")
    for stage in ("train", "export", "verify"):
        stage_runs.run_stage(stage, {"model": "edge"}, store)
    return store


@pytest.mark.slow(2)
@pytest.mark.parametrize("stage", ["export", "verify"])
def test_a_changed_limit_runs_the_stage_again(
    edge: Store, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    (before,) = stage_runs.run_stage(stage, {"model": "edge"}, edge)
    monkeypatch.setattr(limits, "MAX_RMS_IN_FLOORS", 3.5)
    (after,) = stage_runs.run_stage(stage, {"model": "edge"}, edge)
    assert after.reason == "running again: limit MAX_RMS_IN_FLOORS was 4.0, is now 3.5"
    assert before.record.key != after.record.key


@pytest.mark.parametrize("name", sorted(name for name in vars(limits) if name.isupper()))
@pytest.mark.parametrize("stage", [export, verify])
def test_every_limit_is_in_the_key(
    monkeypatch: pytest.MonkeyPatch, stage: ModuleType, name: str
) -> None:
    params = stage.Params(model="edge")
    before = stage.facts(params)
    monkeypatch.setattr(limits, name, "another")
    after = stage.facts(params)
    assert {key for key in after if after[key] != before[key]} == {f"limit {name}"}


def test_the_verdict_names_the_limits_it_was_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.verification.verdict import not_run

    monkeypatch.setattr(limits, "MAX_RMS_IN_FLOORS", 3.5)
    assert not_run("graph", "fp32", "").k == (3.5, limits.MAX_ERROR_IN_FLOORS)
