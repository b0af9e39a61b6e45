"""The rules that keep the code as it was designed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.subset import ROOT

PACKAGES = ("engines", "exporters", "pipeline")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# What each package may import of the three, itself included.
ALLOWED = {
    "engines": {"engines"},
    "exporters": {"engines", "exporters"},
    "pipeline": {"engines", "exporters", "pipeline"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(PACKAGES) <= ALLOWED[package]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_two(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def loaded_by(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(answer.stdout.splitlines()[-1])}


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    before = loaded_by("pass")
    after = loaded_by("import pipeline.cli")
    ours = {"pipeline", "exporters", "engines", "click"}
    assert after - before - set(sys.stdlib_module_names) <= ours


def test_help_loads_neither_numpy_nor_torch() -> None:
    loaded = loaded_by("from pipeline.cli import main\nmain(['--help'])")
    assert loaded.isdisjoint({"numpy", "torch", "onnx", "rich", "onnxruntime", "safetensors"})
    assert "click" in loaded


def test_help_of_every_command_is_light() -> None:
    code = (
        "from pipeline.cli import cli, main\n"
        "for name in cli.commands: assert main([name, '--help']) == 0"
    )
    assert loaded_by(code).isdisjoint({"numpy", "torch", "onnx", "onnxruntime"})
