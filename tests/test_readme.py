"""The README and the documents are complete, and their commands and examples work."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines
from pipeline.workflow import chain
from tests.conftest import Process
from tests.subset import ROOT, python_path

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {
    path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
# Documents with `assay` commands, in an order in which these work one after the other.
ORDER = ("stages.md", "precisions.md", "models.md", "bundles.md", "serving.md", "python.md")


def commands_of(text: str) -> list[str]:
    return [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]


COMMANDS = [line for text in (README, *DOCUMENTS.values()) for line in commands_of(text)]


def make(*words: str) -> str:
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.long
@pytest.mark.timeout(900)  # some minutes on a slow machine
def test_the_commands_and_examples_work_one_after_the_other(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    write_images(tmp_path / "pets")
    ran = 0
    for name in ORDER:
        blocks = re.findall(r"```(sh|python)\n(.*?)```", DOCUMENTS[name], re.DOTALL)
        for language, block in blocks:
            if language == "python":
                source = re.match(r"# (\S+\.py)\n", block)
                assert source, f"{name}: an example without the name of its file"
                (tmp_path / source[1]).write_text(block)
                if source[1] in ("chain.py", "choose.py", "predict.py", "classify.py", "other.py"):
                    run_example(tmp_path / source[1])
                continue
            for line in block.splitlines():
                if line.startswith("assay "):
                    words = shlex.split(line)[1:]
                    if words[0] in ("run", "export") and re.search("int8|fp8", line):
                        # Of the tests' 300 images, chance alone loses more than 1 %.
                        words += ["--max-drop", "5"]
                    result = process(*words, cwd=tmp_path).run()
                    assert result.code == 0, f"{name}: {line}\n{result.err}"
                    ran += 1
    others = [name for name in DOCUMENTS if name not in ORDER]
    assert ran == sum(line.startswith("assay ") for line in COMMANDS)
    assert not any(
        line.startswith("assay ") for name in others for line in commands_of(DOCUMENTS[name])
    )


def write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = random.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def run_example(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, path],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{path.name}\n{done.stderr}"
    assert done.stdout


@pytest.mark.slow(15)
def test_the_example_of_the_readme_works(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "image.png")
    script = tmp_path / "example.py"
    script.write_text(
        "from tests.subset import SUBSET, shorten_benchmarks, registry\n"
        "registry.DATASETS['fashion-mnist'] = SUBSET\nshorten_benchmarks()\n"
        + block.replace('"lenet", ', '"lenet", preset="quick", ')
    )
    run_example(script)


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in DOCUMENTS)])
def test_links_have_existing_targets(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / name).parent / target).exists(), target


def test_the_readme_is_short_and_links_every_document() -> None:
    assert len(README.splitlines()) <= 130
    assert all(f"](docs/{name}" in README for name in DOCUMENTS)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_documented_make_targets_exist(line: str) -> None:
    assert make("-n", *shlex.split(line)[1:])


def test_every_documented_command_is_assay_or_make() -> None:
    assert COMMANDS
    assert all(line.startswith(("assay ", "make ")) for line in COMMANDS)


def test_the_readme_lists_every_stage_and_engine() -> None:
    for name in chain.STAGES:
        assert f"| `assay {name}" in README
    for name in engines.names():
        assert f"| `{name}` |" in README
        assert f"| `{name}` |" in DOCUMENTS["engines.md"]


def test_make_help_describes_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    described = dict(re.findall(r"^  make (\S+) +(\S.*)$", make("help"), re.MULTILINE))
    assert set(described) == set(targets)


def test_continuous_integration_selects_tests_that_exist() -> None:
    selected = re.findall(r"test_\w+", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert selected
    files = list(ROOT.rglob("tests/**/test_*.py"))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in files)
    stems = {path.stem for path in files}
    for name in selected:
        assert name in stems or re.search(rf"^def {name}\b", tests, re.MULTILINE), name


@pytest.mark.parametrize(
    "name", ["train", "export", "verify", "build", "bench", "bundle", "load", "report"]
)
def test_a_make_target_passes_its_variables_on(name: str) -> None:
    command = make("-n", name, "MODEL=vgg", "PRECISION=fp16", "ENGINE=pytorch", "ARGS=--quiet")
    assert f"pipeline.cli {name} vgg" in command
    assert "--quiet" in command
    if name != "train":
        assert "--precision fp16" in command
    if name in ("verify", "build", "bench", "bundle", "load"):
        assert "--engine pytorch" in command
