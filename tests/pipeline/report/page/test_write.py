"""`assay report --html` and `--markdown`."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.report.page import markdown, results
from pipeline.workflow.runner import Store
from tests.conftest import Result
from tests.subset import ROOT

Assay = Callable[..., Result]


def place(store: Store) -> tuple[object, ...]:
    return "--root", store.root, "--dist", store.dist


def test_markdown_has_a_row_for_each_engine(built: Store, assay: Assay) -> None:
    result = assay("report", "lenet", *place(built), "--markdown")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "### lenet"
    assert re.fullmatch(r"Test accuracy \d\d\.\d\d% after \d+ epochs\.", lines[2])
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines if line.startswith("|")]
    header = [cell.strip() for cell in rows[0]]
    assert header[:5] == ["engine", "precision", "verdict", "error x floor", "top-1"]
    assert header[5:] == ["batch 1", "batch 4", "size"]
    assert {len(row) for row in rows} == {len(header)}
    engines = {row[0].strip(): [cell.strip() for cell in row] for row in rows[2:]}
    assert engines["graph"][2] == "pass"
    assert re.fullmatch(r"[\d.]+ (ms|µs)(\\\*)?", engines["onnxruntime"][5])
    assert re.fullmatch(r"[\d.]+ KiB", engines["onnxruntime"][7])
    assert any(line.startswith("- **For latency:** ") for line in lines)


def test_markdown_names_what_is_missing(store: Store, tmp_path: Path, assay: Assay) -> None:
    (store.root / "lenet/fp32/bench.json").unlink()
    (store.root / "lenet/fp32/measurements.json").unlink()
    file = tmp_path / "comment.md"
    result = assay("report", "lenet", *place(store), "--markdown", file)
    assert (result.code, result.out) == (0, "")
    assert f"`assay bench lenet --root {store.root} --dist" not in file.read_text()
    assert f"- no measurements in fp32: run `assay bench lenet --root {store.root}`" in (
        file.read_text()
    )


def test_what_a_sweep_has_measured_is_not_missing(store: Store, assay: Assay) -> None:
    quick = ("--engine", "onnxruntime", "--batch", "1", "--concurrency", "1", "--threads", "1")
    assert assay("sweep", "lenet", "--root", store.root, *quick, "--budget", "0.1").code == 0
    (store.root / "lenet/fp32/bench.json").unlink()
    (store.root / "lenet/fp32/measurements.json").unlink()
    known = results.collect("lenet", (), store)
    assert not [gap for gap in known.gaps if "measurements" in gap.problem]
    (store.root / "lenet/frontier.json").write_text('{"points": 5}')
    problems = [gap.problem for gap in results.collect("lenet", (), store).gaps]
    assert "no measurements in fp32" in problems


def test_markdown_shows_texts_of_users_as_they_are(built: Store) -> None:
    known = results.collect("lenet", (), built)
    known = results.Results(**{**vars(known), "model": "a|b *c* <i>`d` @everyone"})
    text = markdown.text(known, built.place)
    assert text.startswith(r"### a\|b \*c\* \<i\>\`d\` @<!-- -->everyone")


def test_both_at_once_and_json(built: Store, tmp_path: Path, assay: Assay) -> None:
    files = (tmp_path / "page.html", tmp_path / "comment.md")
    words = ("--html", files[0], "--markdown", files[1])
    plain = assay("report", "lenet", *place(built), "--json")
    result = assay("report", "lenet", *place(built), *words, "--json")
    assert result.code == 0
    assert result.out == plain.out
    assert all(file.read_text(encoding="utf-8").strip() for file in files)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--html", "missing/page.html"), "missing is not a folder"),
        (("--markdown", "missing/comment.md"), "missing is not a folder"),
        (("--markdown", "--json"), "--json and --markdown without a file both print on stdout"),
        (("--html", "page.html", "--precision", "fp31"), "unknown precision 'fp31'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_usage(
    built: Store,
    assay: Assay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = assay("report", "lenet", *place(built), *words)
    assert result.code == 2
    assert message in result.err
    assert not [*tmp_path.iterdir()]


def test_a_precision_that_is_not_exported_is_missing(
    built: Store, assay: Assay, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    result = assay("report", "lenet", *place(built), "--html", file, "--precision", "fp16")
    assert result.code == 0
    assert "assay export lenet --precision fp16" in file.read_text()
    assert "onnxruntime" not in file.read_text()


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_before_the_work(
    built: Store, assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    file = tmp_path / "page.html"
    result = assay("report", "lenet", *place(built), "--html", file)
    assert result.code == 4
    assert f"{module} cannot be imported" in result.err
    assert "pip install jinja2 matplotlib" in result.err
    assert assay("report", "lenet", *place(built), "--markdown").code == 0


@pytest.mark.slow(5)
def test_a_wheel_has_the_template_and_the_style(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipeline" / "report", project / "pipeline" / "report")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    (project / "pipeline" / "__init__.py").touch()
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=project, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folder = ROOT / "pipeline" / "report" / "page"
    data = [path.name for path in folder.iterdir() if path.suffix in (".html", ".css")]
    assert len(data) == 2
    assert {f"pipeline/report/page/{name}" for name in data} <= {*names}


def test_the_extra_has_what_the_page_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = " ".join(extras["optional-dependencies"]["report"])
    assert "jinja2" in words
    assert "matplotlib" in words
