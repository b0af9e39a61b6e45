"""Rules for the structure of the code."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporters import PRECISIONS
from pipeline.workflow import artifacts as workflow_artifacts
from pipeline.workflow import chain
from pipeline.workflow.artifacts import Artifact
from tests.subset import ROOT

PACKAGES = ("assay", "engines", "exporters", "pipeline")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# What each folder may import, besides itself. Imports inside functions count too.
ALLOWED = {
    "assay": {
        "engines",
        "pipeline",
        "pipeline/bundling",
        "pipeline/cli",
        "pipeline/golden",
        "pipeline/models",
        "pipeline/report/page",
        "pipeline/serving",
        "pipeline/stages",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "engines": {"engines/backends"},
    "engines/backends": {"engines"},
    "exporters": {"engines", "engines/backends"},
    "pipeline": set(),
    "pipeline/workflow": {"engines", "pipeline"},
    "pipeline/data": {"engines", "pipeline/workflow"},
    "pipeline/models": {
        "engines",
        "exporters",
        "pipeline/data",
        "pipeline/models/zoo",
        "pipeline/workflow",
    },
    "pipeline/models/zoo": {"exporters", "pipeline/data", "pipeline/models"},
    "pipeline/golden": {"engines", "exporters", "pipeline/models", "pipeline/workflow"},
    "pipeline/training": {
        "engines",
        "engines/backends",
        "exporters",
        "pipeline/data",
        "pipeline/golden",
        "pipeline/models",
        "pipeline/workflow",
    },
    "pipeline/verification": {"engines", "exporters", "pipeline/golden", "pipeline/workflow"},
    "pipeline/verification/bisection": {
        "engines",
        "exporters",
        "pipeline/golden",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/exporting": {
        "engines",
        "exporters",
        "pipeline/golden",
        "pipeline/models",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/benchmarking": {"engines", "exporters", "pipeline/workflow"},
    "pipeline/bundling": {
        "engines",
        "exporters",
        "pipeline",
        "pipeline/golden",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/rebuilding": {
        "engines",
        "pipeline/benchmarking",
        "pipeline/bundling",
        "pipeline/golden",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/serving/watching": {
        "engines",
        "pipeline/benchmarking",
        "pipeline/bundling",
        "pipeline/golden",
        "pipeline/serving",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/serving": {
        "engines",
        "engines/backends",
        "exporters",
        "pipeline",
        "pipeline/benchmarking",
        "pipeline/bundling",
        "pipeline/golden",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/report": {
        "engines",
        "exporters",
        "pipeline/benchmarking",
        "pipeline/data",
        "pipeline/golden",
        "pipeline/models",
        "pipeline/rebuilding",
        "pipeline/verification",
        "pipeline/verification/bisection",
        "pipeline/workflow",
    },
    "pipeline/report/page": {
        "engines",
        "exporters",
        "pipeline",
        "pipeline/benchmarking",
        "pipeline/bundling",
        "pipeline/models",
        "pipeline/rebuilding",
        "pipeline/report",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/stages": {
        "engines",
        "exporters",
        "pipeline",
        "pipeline/benchmarking",
        "pipeline/bundling",
        "pipeline/data",
        "pipeline/exporting",
        "pipeline/golden",
        "pipeline/models",
        "pipeline/rebuilding",
        "pipeline/report",
        "pipeline/serving",
        "pipeline/training",
        "pipeline/verification",
        "pipeline/workflow",
    },
    "pipeline/cli": {
        "engines",
        "exporters",
        "pipeline",
        "pipeline/benchmarking",
        "pipeline/bundling",
        "pipeline/data",
        "pipeline/exporting",
        "pipeline/golden",
        "pipeline/models",
        "pipeline/rebuilding",
        "pipeline/report",
        "pipeline/report/page",
        "pipeline/serving",
        "pipeline/serving/watching",
        "pipeline/stages",
        "pipeline/training",
        "pipeline/verification",
        "pipeline/verification/bisection",
        "pipeline/workflow",
    },
}


def modules_imported(path: Path) -> set[str]:
    """Returns the full names of the modules of our four packages that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                modules.add(name if is_module(name) else node.module)
    return {name for name in modules if name.split(".")[0] in PACKAGES}


def is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").is_file()


def folder_of(module: str) -> str:
    place = ROOT / module.replace(".", "/")
    return str((place if place.is_dir() else place.parent).relative_to(ROOT))


def test_imports_go_one_way() -> None:
    wrong = []
    for path in SOURCES:
        folder = str(path.parent.relative_to(ROOT))
        if path.name == "__main__.py":
            folder = "pipeline/cli"  # `python -m FOLDER` is a command in any folder
        for module in modules_imported(path):
            if folder_of(module) not in {folder, *ALLOWED[folder]}:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_engines_import_only_what_a_target_has() -> None:
    allowed = {*sys.stdlib_module_names, "engines", "numpy", "platformdirs"}
    # Each of these wraps the one library that it may import.
    vendors = {"engines/cuda.py": {"cuda"}, "engines/backends/pytorch.py": {"torch"}}
    for path in sorted((ROOT / "engines").rglob("*.py")):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
        name = str(path.relative_to(ROOT))
        assert imported <= allowed | vendors.get(name, set()), name


def test_artifact_file_names_appear_in_one_module() -> None:
    artifacts = [
        entry for entry in vars(workflow_artifacts).values() if isinstance(entry, Artifact)
    ]
    names = {entry.name for entry in artifacts} | {Path(entry.record).name for entry in artifacts}
    # "engine" is excluded, since it is also an ordinary word.
    names = {name for name in names if "." in name and "{" not in name}
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        if path == ROOT / "pipeline" / "workflow" / "artifacts.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
        keys += [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in keys:
                assert node.value not in names, f"{path}:{node.lineno}"


def test_precisions_are_named_only_in_their_table() -> None:
    # Engines' layers and autocast have names of types of their own.
    others = {"exporters/__init__.py", "pipeline/golden/rounding.py", "pipeline/training/loop.py"}
    for path in [
        entry for entry in SOURCES if not str(entry.relative_to(ROOT)).startswith("engines")
    ]:
        if str(path.relative_to(ROOT)) in others:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in PRECISIONS, f"{path}:{node.lineno}"


def test_no_stage_imports_another() -> None:
    stages = {f"pipeline.stages.{name}" for name in chain.STAGES}
    for name in chain.STAGES:
        imported = modules_imported(ROOT / "pipeline" / "stages" / f"{name}.py")
        assert not imported & stages, name


def test_no_member_of_an_engine_is_looked_up_by_name() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                subject = ast.unparse(node.args[0])
                assert subject != "engine", path
                assert not subject.startswith("engines.get("), path


@pytest.mark.parametrize("folder", ALLOWED)
def test_every_package_has_a_one_sentence_docstring(folder: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")))
    assert text
    assert "\n" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def loaded_by(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(answer.stdout.splitlines()[-1])}


def test_importing_the_command_line_loads_no_large_library() -> None:
    before = loaded_by("pass")
    after = loaded_by("import pipeline.cli.main")
    ours = {"pipeline", "exporters", "engines", "click"}
    assert after - before - set(sys.stdlib_module_names) <= ours


def test_the_table_of_precisions_loads_no_torch() -> None:
    assert loaded_by("import exporters").isdisjoint({"torch", "numpy", "onnx"})


def test_help_loads_neither_numpy_nor_torch() -> None:
    loaded = loaded_by("from pipeline.cli.main import main\nmain(['--help'])")
    assert loaded.isdisjoint({"numpy", "torch", "onnx", "rich", "onnxruntime", "safetensors"})
    assert "click" in loaded


def test_help_of_every_command_is_light() -> None:
    code = (
        "from pipeline.cli.main import cli, main\n"
        "for name in cli.commands: assert main([name, '--help']) == 0"
    )
    assert loaded_by(code).isdisjoint({"numpy", "torch", "onnx", "onnxruntime"})


def test_engines_are_found_without_torch_and_onnx() -> None:
    code = "import engines\nfor name in engines.names(): engines.get(name)"
    loaded = loaded_by(code) - loaded_by("import numpy") - set(sys.stdlib_module_names)
    assert loaded == {"engines"}


def test_every_test_folder_has_fast_tests(request: pytest.FixtureRequest) -> None:
    # Checks the collected tests; `make test` collects all.
    items = request.session.items
    fast = {item.path.parent for item in items if item.get_closest_marker("slow") is None}
    assert fast == {item.path.parent for item in items}
