"""The README says what is there, and its commands work."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import engines
from pipeline.workflow import chain
from tests.conftest import Process
from tests.subset import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def make(*words: str) -> str:
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(900)  # some minutes on a slow machine
def test_the_commands_work_one_after_the_other(
    tmp_path: Path, process: Callable[..., Process]
) -> None:
    for name, source in re.findall(r"```python\n# (\S+)\n(.*?)```", README, re.DOTALL):
        (tmp_path / name).write_text(source)
    ran = [shlex.split(line) for line in COMMANDS if line.startswith("assay ")]
    assert len(ran) >= 9
    for words in ran:
        result = process(*words[1:], cwd=tmp_path).run()
        assert result.code == 0, f"{' '.join(words)}\n{result.err}"


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_the_make_targets_are_there(line: str) -> None:
    assert make("-n", *shlex.split(line)[1:])


def test_every_command_line_is_one_of_the_two() -> None:
    assert all(line.startswith(("assay ", "make ")) for line in COMMANDS)


def test_it_lists_every_stage_and_engine() -> None:
    for name in chain.STAGES:
        assert f"| `assay {name}" in README
    for name in engines.names():
        assert f"| `{name}` |" in README


def test_make_help_says_what_each_target_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    said = dict(re.findall(r"^  make (\S+) +(\S.*)$", make("help"), re.MULTILINE))
    assert set(said) == set(targets)


@pytest.mark.parametrize(
    "name", ["train", "export", "verify", "build", "bench", "bundle", "report"]
)
def test_a_make_target_passes_its_variables_on(name: str) -> None:
    command = make("-n", name, "MODEL=vgg", "PRECISION=fp16", "ENGINE=pytorch", "ARGS=--quiet")
    assert f"pipeline.cli {name} vgg" in command
    assert "--quiet" in command
    if name != "train":
        assert "--precision fp16" in command
    if name in ("verify", "build", "bench", "bundle"):
        assert "--engine pytorch" in command
