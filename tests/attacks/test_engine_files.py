"""Hostile engine files under records that match: a row says why, and the others are judged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import engines
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of, members, pack, rerecorded, with_digest
from tests.conftest import Result

Assay = Callable[..., Result]

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"no engine" * 1000,
    "cut": lambda content: content[: len(content) // 2],
}


def path_of(engine: str) -> str:
    return f"lenet/fp32/{engine}/engine"


@pytest.mark.slow(8)
@pytest.mark.parametrize(
    ("damage", "good"), [("empty", "onnxruntime"), ("text", "openvino"), ("cut", "pytorch")]
)
def test_damaged_engines_of_a_bundle_are_rows(
    built: Store, tmp_path: Path, assay: Assay, damage: str, good: str
) -> None:
    contents = members(bundle_of(built))
    names = [name.split("/")[-2] for name in contents if name.endswith("/engine")]
    damaged = {
        path_of(name): DAMAGES[damage](contents[f"lenet-fp32/{path_of(name)}"])
        for name in names
        if name != good
    }
    path = pack(tmp_path / "forged.tar.gz", list(rerecorded(contents, damaged).items()))
    result = assay("check", path, "--json")
    assert result.code == 1
    rows = {row["subject"]: row for row in json.loads(result.out)["verdicts"]}
    here = {name for name in names if engines.get(name).available().run}
    assert {name for name in rows if rows[name]["status"] == "pass"} == {"graph", good}
    assert {name for name in rows if rows[name]["status"] == "failed"} == here - {good}
    for name in here - {good}:
        assert f"{path}: member {path_of(name)}" in rows[name]["reason"]


@pytest.mark.slow(4)
def test_damaged_engines_of_a_store_are_rows(store: Store, assay: Assay) -> None:
    for name in ("openvino", "pytorch"):
        change_engine(store, name, b"no engine")
    place = ("--root", store.root, "--dist", store.dist)
    result = assay("verify", "lenet", "--engine", "all", *place)
    assert result.code == 1
    assert "openvino cannot be judged: OpenVINO does not accept" in result.err
    assert "pytorch cannot be judged:" in result.err
    for name, status in (("openvino", "failed"), ("pytorch", "failed"), ("onnxruntime", "pass")):
        verdict = json.loads((store.root / f"lenet/fp32/{name}/verdict.json").read_text())
        assert verdict["status"] == status
    again = assay("verify", "lenet", "--engine", "openvino", *place)
    assert "running again: it failed last time" in again.err
    whole = assay("run", "lenet", "--batch", 1, "--budget", 0.1, *place)
    assert whole.code == 1
    assert whole.out.count("failed:") == 2
    assert "bundle: " in whole.out


def change_engine(store: Store, engine: str, content: bytes) -> None:
    """Replaces a built engine, and its digest in the record of its build."""
    path = store.root / path_of(engine)
    path.write_bytes(content)
    for record in path.parent.glob("*.json"):
        record.write_bytes(with_digest(record.read_bytes(), path_of(engine), content))
