"""No command reports to anybody: no connection, and no identifier in the home folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.workflow.runner import Store
from tests.bundles import bundle_of
from tests.subset import python_path

# Libraries report nothing where they see these.
CI = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")
ENGINES = ("--engine", "onnxruntime", "--engine", "openvino", "--engine", "pytorch")
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("lenet", "--retrain", "--epochs", "1", "--limit", "50"),
    "export": ("lenet", "--force"),
    "export int8": ("lenet", "--precision", "int8"),
    "verify": ("lenet", "--engine", "all", "--force"),
    "build": ("lenet", "--engine", "all", "--force"),
    "bench": ("lenet", *ENGINES, "--force"),
    "load": ("lenet", *ENGINES, "--force", "--duration", "0.1"),
    "bundle": ("lenet", "--force"),
    "inspect": ("{root}/lenet/fp32/model.onnx",),
    "summary": ("timm:resnet18",),
    "report": ("lenet",),
    "runs": ("lenet",),
    "clean": ("lenet",),
    "doctor": (),
    "models": (),
}


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., None]:
    """Runs a command that must succeed, connect to nothing, and keep the home folder empty."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    tracer: list[str] = []
    if program := shutil.which("strace"):
        tracer = [program, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]

    def run(*words: object) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in CI}
        environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "ASSAY_CACHE": "cache"}
        ended = subprocess.run(
            [*tracer, sys.executable, "-m", "tests.subset", *map(str, words)],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": python_path()},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert not list(home.rglob("*"))
        calls = trace.read_text(encoding="utf-8") if tracer else ""
        assert "AF_INET" not in calls

    return run


@pytest.mark.slow(8)
def test_a_check_reports_to_nobody(built: Store, traced: Callable[..., None]) -> None:
    traced("check", "--trust", bundle_of(built))


@pytest.mark.slow(8)
def test_a_model_for_mlflow_reports_to_nobody(built: Store, traced: Callable[..., None]) -> None:
    pytest.importorskip("mlflow")
    traced("mlflow", bundle_of(built), "model")


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_reports_to_anybody(
    store: Store, traced: Callable[..., None], name: str
) -> None:
    words = [word.format(root=store.root) for word in COMMANDS[name]]
    place = ["--root", store.root, "--dist", store.dist]
    unplaced = name in ("inspect", "summary", "doctor", "models")
    traced(name.split(maxsplit=1)[0], *words, *([] if unplaced else place))
