"""Temporary folders of killed processes: which are removed, and when."""

from collections.abc import Callable
from pathlib import Path

from pipeline.workflow import leftovers, lock
from tests.conftest import Result

Assay = Callable[..., Result]


def folder(base: Path, root: Path, name: str) -> Path:
    leftover = base / f"{leftovers.prefix(root, name)}abcd"
    leftover.mkdir(parents=True)
    (leftover / "part").write_text("half")
    return leftover


def test_only_those_of_stages_that_do_not_run_are_removed(tmp_path: Path) -> None:
    root, other, dist = tmp_path / "root", tmp_path / "other", tmp_path / "dist"
    dead = [folder(root, root, "edge-train"), folder(dist, root, "edge-fp32-bundle")]
    alive = folder(root, root, "edge-fp32-export")
    foreign = folder(dist, other, "edge-fp32-bundle")
    with lock.held(root / ".locks/edge-fp32-export", "edge fp32 export", 0):
        leftovers.sweep(root, dist)
        assert not any(path.exists() for path in dead)
        assert alive.exists()
    leftovers.sweep(root, dist)
    assert not alive.exists()
    assert foreign.exists()


def test_any_command_removes_them(tmp_path: Path, assay: Assay) -> None:
    root = tmp_path / "artifacts"
    dead = folder(root, root, "lenet-train")
    assay("report", "edge", "--root", root, "--dist", tmp_path / "dist")
    assert not dead.exists()
