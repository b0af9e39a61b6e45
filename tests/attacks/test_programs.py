"""Hostile engines of exported programs: what assay itself reads of them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import engines
from engines.backends import aot_inductor
from engines.backends.pytorch import SIGNATURE, specs_of
from engines.contract import OpenOptions
from engines.errors import DeployError
from pipeline.workflow.runner import Store

GOOD = {"name": "x", "dtype": "float32", "shape": [None, 3]}
WRONG = {
    "null": None,
    "text": "inputs",
    "a number": 3,
    "an object": {},
    "nothing": [],
    "an entry that is null": [None],
    "an entry that is a list": [[]],
    "no name": [{"dtype": "float32", "shape": []}],
    "a name that is a number": [{**GOOD, "name": 1}],
    "a name that is null": [{**GOOD, "name": None}],
    "no dtype": [{"name": "x", "shape": []}],
    "a dtype that is a list": [{**GOOD, "dtype": []}],
    "no shape": [{"name": "x", "dtype": "float32"}],
    "a shape that is text": [{**GOOD, "shape": "3"}],
    "a shape with text": [{**GOOD, "shape": ["3"]}],
    "a shape with a fraction": [{**GOOD, "shape": [1.5]}],
    "a shape that is negative": [{**GOOD, "shape": [-1]}],
    "a shape with true": [{**GOOD, "shape": [True]}],
}


def test_a_signature_is_read() -> None:
    (spec,) = specs_of([GOOD])
    assert (spec.name, spec.dtype, spec.shape) == ("x", "float32", (None, 3))


@pytest.mark.parametrize("case", WRONG)
def test_a_signature_with_a_wrong_type_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match="its signature has "):
        specs_of(WRONG[case])


def _signed(source: Path, target: Path, text: str) -> Path:
    """Copies a program with another signature."""
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(target, "w") as bad:
        for info in good.infolist():
            changed = info.filename.endswith(SIGNATURE)
            bad.writestr(info.filename, text if changed else good.read(info))
    return target


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("case", ["null", "an entry that is null", "a shape with text"])
def test_a_program_with_a_wrong_signature_is_refused(
    built: Store, tmp_path: Path, side: str, case: str
) -> None:
    text = json.dumps({"inputs": [GOOD], "outputs": [GOOD], side: WRONG[case]})
    path = _signed(built.root / "lenet/fp32/pytorch/engine.pt2", tmp_path / "engine", text)
    with pytest.raises(DeployError, match="its signature has "):
        engines.get("pytorch").open(path, OpenOptions("cpu", 1))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"inputs": [{"name": "x", "dtype": "system", "shape": []}]}'],
)
def test_a_program_with_a_signature_of_another_kind_is_refused(
    built: Store, tmp_path: Path, text: str
) -> None:
    path = _signed(built.root / "lenet/fp32/pytorch/engine.pt2", tmp_path / "engine", text)
    with pytest.raises(DeployError, match="engine"):
        engines.get("pytorch").open(path, OpenOptions("cpu", 1))


FACTS = {"inputs": [GOOD], "outputs": [GOOD], "device": "cpu", "instructions": "AVX2"}
PACKAGES: dict[str, Callable[[], bytes]] = {
    "a list": lambda: b"[]",
    "null": lambda: b"null",
    "no JSON": lambda: b"{",
    "not UTF-8": lambda: b"\xff",
    "nothing": lambda: b"",
    "a device that is a list": lambda: json.dumps({**FACTS, "device": []}).encode(),
    "instructions that are a number": lambda: json.dumps({**FACTS, "instructions": 2}).encode(),
    "no outputs": lambda: json.dumps({**FACTS, "outputs": None}).encode(),
    "inputs that are text": lambda: json.dumps({**FACTS, "inputs": "x"}).encode(),
    "20 MB of spaces": lambda: b" " * (20 << 20),
}


@pytest.mark.parametrize("case", PACKAGES)
def test_a_package_with_wrong_facts_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "engine"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(aot_inductor._EXTRA, PACKAGES[case]())
    with pytest.raises(DeployError, match="AOTInductor does not accept"):
        aot_inductor.ENGINE.open(path, OpenOptions("cpu", 1))
