"""Fixtures of all tests: a small data set, a chain that is built once, and the command line."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

import engines
from engines import backends, hardware
from pipeline.cli import main, stage_runs
from pipeline.data import registry
from pipeline.workflow import console, worker
from pipeline.workflow.runner import Store
from tests.subset import FAULTY, SUBSET, install_trained, python_path
from tests.unusual import SOURCE

# Number of pytest-xdist's processes.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Memory of a worker with torch and the engines, and of the commands that it starts.
WORKER_BYTES = 3 << 30
MOST_WORKERS = 8


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may not be installed
def pytest_xdist_auto_num_workers() -> int:
    """Returns the number of processes for `-n auto`; 0 means this one only."""
    fitting = hardware.free_memory() // WORKER_BYTES
    workers = min(hardware.available_cpus(), fitting, MOST_WORKERS)
    return workers if workers > 1 else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first if there are several workers, so that all end together."""
    if WORKERS == 1:
        return
    files: Counter[Path] = Counter()
    for item in items:
        files[item.path] += _seconds(item)
    # Also within a file: a worker gets its next file before its last two tests.
    items.sort(key=lambda item: (files[item.path], str(item.path), _seconds(item)), reverse=True)


def _seconds(item: pytest.Item) -> int:
    """Returns the seconds in a test's `slow` marker, or 0."""
    marker = item.get_closest_marker("slow")
    return int(marker.args[0]) if marker else 0


def need_engine(name: str, *, run: bool = True) -> None:
    """Skips the test if an engine cannot be run here, or if `run` is False, cannot be built."""
    state = engines.get(name).available()
    if not (state.run if run else state.build):
        pytest.skip(state.reason)


@pytest.fixture(autouse=True, scope="session")
def _small_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.DATASETS, "fashion-mnist", SUBSET)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The whole chain for a trained LeNet. Read-only: tests that change it use `store`."""
    folder = tmp_path_factory.mktemp("built")
    store = Store(folder / "artifacts", folder / "dist")
    stage_runs.run_stage("data", {}, store)
    install_trained(store)
    stage_runs.run_all({"model": "lenet", "batch": (1, 4), "budget": 0.1}, store)
    return store


@pytest.fixture
def store(built: Store, tmp_path: Path) -> Store:
    """A copy of the built chain, which a test may change."""
    copy = dataclasses.replace(built, root=tmp_path / "artifacts", dist=tmp_path / "dist")
    shutil.copytree(built.root, copy.root)
    shutil.copytree(built.dist, copy.dist)
    return copy


@dataclass
class Result:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def assay(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Runs a command in this process."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    yield call
    console.settings.json = console.settings.quiet = False


@pytest.fixture
def faulty_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the engines of `tests/faulty_engines`; child processes find them by `sitecustomize`."""
    monkeypatch.setenv("PYTHONPATH", python_path(FAULTY))
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(FAULTY / "backends")])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds and proves engines in this process, for tests that replace functions of ours."""
    monkeypatch.setattr(worker.settings, "isolate", False)


@dataclass
class Process:
    """A command that runs in a separate process, on the small data set."""

    words: tuple[object, ...]
    cwd: Path

    def start(
        self, *, machine: Mapping[str, str] = MappingProxyType({}), **more: object
    ) -> subprocess.Popen[str]:
        """Starts it; the caller waits for it.

        Args:
            machine: Environment variables, as `tests.machines` returns them.
        """
        command = [sys.executable, "-m", "tests.subset", *map(str, self.words)]
        environment = {**os.environ, "PYTHONPATH": python_path(), **machine}
        return subprocess.Popen(
            command,
            cwd=self.cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, *, timeout: float = 200, **more: object) -> Result:
        """Runs it to its end."""
        process = self.start(**more)
        out, err = process.communicate(timeout=timeout)
        return Result(process.returncode, out, err)


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Process]:
    """Makes a command that runs in a separate process, in an empty folder."""

    def make(*words: object, cwd: Path = tmp_path) -> Process:
        return Process(words, cwd)

    return make


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    name = f"unusual_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda factory: f"{name}:{factory}"
