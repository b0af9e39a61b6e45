"""The names that our code asks of TensorRT exist in the vendor's modules, version by version."""

import shutil
from pathlib import Path

import pytest

from benchmarks import tensorrt_names
from tests.engines import vendor_names, vendor_wheels
from tests.subset import ROOT

RTX = "TensorRT for RTX"
DOWNLOADED = [name for name, wheels in vendor_wheels.WHEELS.items() if wheels.requirements]


def need(name: str) -> vendor_names.Interpreter:
    """Returns the interpreted source, or skips the test with the reason if a wheel is missing."""
    try:
        contents = vendor_wheels.contents(name)
    except vendor_wheels.UnavailableWheelError as error:
        pytest.skip(str(error))
    return vendor_names.interpreted(contents, vendor_wheels.WHEELS[name].engine)


@pytest.mark.parametrize(
    "name", [RTX, *(pytest.param(name, marks=pytest.mark.long) for name in DOWNLOADED)]
)
def test_every_name_that_is_asked_for_exists(name: str) -> None:
    interpreter = need(name)
    assert list(vendor_names.problems(interpreter)) == []
    assert interpreter.untracked == set()


@pytest.mark.long
def test_the_published_table_is_current() -> None:
    for name in vendor_wheels.WHEELS:
        need(name)
    published = ROOT / "benchmarks/results/tensorrt-names.md"
    assert tensorrt_names.table() == published.read_text(encoding="utf-8")


def test_a_name_on_a_value_of_unknown_class_is_reported(tmp_path: Path) -> None:
    need(RTX)
    for name in vendor_names.FILES:
        shutil.copy(vendor_names.FOLDER / name, tmp_path)
    with (tmp_path / "_tensorrt_session.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef started(kind, logger, name):\n    return made_elsewhere(kind)\n")
    changed = vendor_names.interpreted(vendor_wheels.contents(RTX), "tensorrt_rtx", tmp_path)
    assert any(place.endswith(": deserialize_cuda_engine") for place in changed.untracked)


@pytest.mark.parametrize(
    ("file", "before", "after", "problem"),
    [
        ("_tensorrt.py", "create_builder_config()", "create_config()", "Builder.create_config"),
        ("_tensorrt.py", "BuilderFlag.TF32", "BuilderFlag.TF16", "BuilderFlag.TF16"),
        ("_tensorrt.py", ".builder_optimization_level =", ".level =", "IBuilderConfig.level"),
        ("_tensorrt_library.py", "vendor.IProgressMonitor", "vendor.Monitor", "module.Monitor"),
        ("_tensorrt_library.py", "def phase_finish", "def phase_end", "IProgressMonitor.phase_end"),
        ("_tensorrt.py", "(kept), False)", "(kept))", "does not fit"),
        ("_tensorrt.py", 'f"SM{sm}"), index)', 'f"SM{sm}"), at=index)', "does not fit"),
        (
            "_tensorrt_network.py",
            "error.node_name()",
            "error.node_title()",
            "ParserError.node_title",
        ),
        ("_tensorrt_network.py", "network.get_input(index)", "network.input(index)", "n.input "),
        ("_tensorrt_session.py", "set_runtime_cache(", "set_cache(", "IRuntimeConfig.set_cache"),
        ("_tensorrt_session.py", "kinds.EAGER", "kinds.KEEN", "Strategy.KEEN"),
        ("_tensorrt_session.py", ".execute_async_v3(", ".execute_async_v4(", "async_v4"),
    ],
)
def test_a_wrong_name_is_reported_with_its_line(
    file: str, before: str, after: str, problem: str, tmp_path: Path
) -> None:
    need(RTX)
    contents = vendor_wheels.contents(RTX)
    for name in vendor_names.FILES:
        shutil.copy(vendor_names.FOLDER / name, tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    (tmp_path / file).write_text(text.replace(before, after))
    changed = vendor_names.interpreted(contents, "tensorrt_rtx", tmp_path)
    reports = list(vendor_names.problems(changed))
    assert any(problem in report and report.startswith(f"{file}:") for report in reports), reports
