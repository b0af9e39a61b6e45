"""Building an engine several times."""

import os
from pathlib import Path

import pytest

from engines import hardware
from engines.cache import cache_folder
from engines.errors import DeployError
from pipeline.rebuilding import region, spread
from pipeline.workflow.runner import Store
from tests.conftest import need_engine


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "SECONDS", 0.05)


def subject(store: Store, engine: str) -> spread.Subject:
    golden = store.root / "lenet" / "fp32" / "golden.npz"
    return spread.Subject(engine, golden, "fp32", (1, 4), "auto", 1)


def test_each_build_has_empty_caches_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    before, folders = cache_folder(), []
    for _ in range(2):
        with spread.fresh_caches():
            folders.append(cache_folder())
            assert not cache_folder().exists()
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != "mine"
            cache_folder().mkdir()
    assert len({before, *folders}) == 3
    assert cache_folder() == before
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    assert not any(folder.exists() for folder in folders)


@pytest.mark.slow(12)
def test_the_first_build_is_kept_and_every_one_is_measured(built: Store, tmp_path: Path) -> None:
    whole = (built.root / "lenet" / "fp32" / "onnxruntime" / "engine.onnx").read_bytes()
    # An empty field of a later version: another file that computes the same.
    contents = [whole, whole + b"\x72\x00"]

    def build(path: Path) -> int:
        path.write_bytes(contents[len(calls)])
        calls.append(path)
        return len(calls)

    calls: list[Path] = []
    target = tmp_path / "engine.onnx"
    result, builds = spread.repeat(build, target, 2, subject(built, "onnxruntime"))
    assert result == 1
    assert target.read_bytes() == contents[0]
    assert [path.name for path in tmp_path.iterdir()] == ["engine.onnx"]
    first, second = builds.builds
    assert first.sha256 != second.sha256
    assert (first.bytes, second.bytes) == tuple(map(len, contents))
    assert first.errors == second.errors
    assert first.latency.keys() == {"1", "4"}
    assert all(entry.low <= entry.value <= entry.high for entry in first.latency.values())
    assert builds.machine == {**hardware.cpu_fingerprint(), "threads": "1"}
    assert builds.region == region.derive(builds.builds)


@pytest.mark.slow(5)
def test_a_build_that_its_library_does_not_open_is_noted(built: Store, tmp_path: Path) -> None:
    path = tmp_path / "engine.onnx"
    _, builds = spread.repeat(
        lambda target: target.write_bytes(b"no graph"), path, 2, subject(built, "onnxruntime")
    )
    assert {build.status for build in builds.builds} == {"failed"}
    assert builds.region is None
    assert isinstance(region.faults("onnxruntime", builds)[0], DeployError)


@pytest.mark.slow(5)
def test_an_engine_that_does_not_run_here_is_built_and_not_judged(
    built: Store, tmp_path: Path
) -> None:
    need_engine("tensorrt_rtx", run=False)
    if hardware.gpus():
        pytest.skip("a GPU may run it")
    plan = (built.root / "lenet" / "fp32" / "tensorrt_rtx" / "engine.plan").read_bytes()
    path = tmp_path / "engine.plan"
    _, builds = spread.repeat(
        lambda target: target.write_bytes(plan), path, 2, subject(built, "tensorrt_rtx")
    )
    assert {build.status for build in builds.builds} == {"not run"}
    assert (builds.region, builds.device) == (None, "")
    assert not region.faults("tensorrt_rtx", builds)


def test_the_kind_of_a_gpu_is_not_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "NVIDIA H100", "driver": "580", "compute_capability": "9.0"}
    monkeypatch.setattr(hardware, "gpus", lambda: ({}, card))
    assert spread.kind("cuda:1", 8) == {
        "gpu_name": "NVIDIA H100",
        "gpu_compute_capability": "9.0",
    }
    assert spread.kind("cuda:3", 8) == {"gpu": "none"}


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [((1, 256), [1, 64]), ((1, 1), [1]), ((2, 8), [2, 8]), ((128, 256), [128])],
)
def test_the_least_and_the_largest_usual_batch_are_measured(
    batches: tuple[int, int], sizes: list[int]
) -> None:
    assert spread.loads(batches) == sizes
