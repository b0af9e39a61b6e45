"""Hostile engine files under records that match: a row says why, and the others are judged."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engines
from engines.checks import import_vendor
from engines.contract import OpenOptions
from engines.errors import DeployError
from pipeline.workflow.artifacts import ENGINE, is_engine
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of, members, pack, rerecorded, with_digest
from tests.conftest import Result, need_engine
from tests.subset import python_path

Assay = Callable[..., Result]

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"no engine" * 1000,
    "cut": lambda content: content[: len(content) // 2],
}


def path_of(engine: str) -> str:
    return ENGINE.at(model="lenet", precision="fp32", engine=engine).path


@pytest.mark.slow(8)
@pytest.mark.parametrize(
    ("damage", "good"), [("empty", "onnxruntime"), ("text", "openvino"), ("cut", "pytorch")]
)
def test_damaged_engines_of_a_bundle_are_rows(
    built: Store, tmp_path: Path, assay: Assay, damage: str, good: str
) -> None:
    contents = members(bundle_of(built))
    names = [name.split("/")[-2] for name in contents if is_engine(name.partition("/")[2])]
    damaged = {
        path_of(name): DAMAGES[damage](contents[f"lenet-fp32/{path_of(name)}"])
        for name in names
        if name != good
    }
    path = pack(tmp_path / "forged.tar.zst", list(rerecorded(contents, damaged).items()))
    result = assay("check", "--trust", path, "--json")
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


def hostile(built: Store, change: Callable[[str], str]) -> bytes:
    """Returns OpenVINO's engine with another description of its model."""
    with zipfile.ZipFile(built.root / path_of("openvino")) as archive:
        return zipped(change(archive.read("model.xml").decode()), archive.read("model.bin"))


def zipped(xml: str, weights: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.xml", xml)
        archive.writestr("model.bin", weights)
    return file.getvalue()


def entities(declared: str) -> Callable[[str], str]:
    """Returns a change that declares entities and uses "&x;" in the name of the model."""
    head = f'<?xml version="1.0"?><!DOCTYPE net [{declared}]>'
    return lambda xml: xml.replace('<?xml version="1.0"?>', head).replace(
        '<net name="', '<net name="&x;', 1
    )


def test_an_archive_with_wrong_sizes_is_refused(built: Store, tmp_path: Path) -> None:
    content = bytearray((built.root / path_of("openvino")).read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 20 : entry + 28] = bytes([0, 0, 0, 127] * 2)  # both sizes: 2 GB
    path = tmp_path / "engine"
    path.write_bytes(content)
    with pytest.raises(DeployError, match="OpenVINO does not accept"):
        engines.get("openvino").open(path, OpenOptions())


LAUGHS = '<!ENTITY l0 "lol">' + "".join(
    f'<!ENTITY {"x" if level == 12 else f"l{level}"} "{f"&l{level - 1};" * 10}">'
    for level in range(1, 13)
)
# {canary} is a FIFO, which a process that reads it waits for.
MODELS: dict[str, Callable[[str], str]] = {
    "entities that expand to 10^12": entities(LAUGHS),
    "an entity from a file": entities('<!ENTITY x SYSTEM "file://{canary}">'),
    "a document type from a file": lambda xml: xml.replace(
        '<?xml version="1.0"?>', '<?xml version="1.0"?><!DOCTYPE net SYSTEM "file://{canary}">'
    ),
    "weights in another file": lambda xml: re.sub(
        r'offset="(\d+)"', r'location="{canary}" path="{canary}" offset="\1"', xml
    ),
    "operators in a library": lambda xml: xml.replace('"opset1"', '"{canary}"'),
    "an offset past the end": lambda xml: re.sub(r'offset="\d+"', f'offset="{2**62}"', xml),
    "a negative offset": lambda xml: re.sub(r'offset="\d+"', 'offset="-1"', xml),
    "a size of 2^62": lambda xml: re.sub(r' size="\d+"', f' size="{2**62}"', xml),
    "a constant of 10^12 elements": lambda xml: re.sub(
        r'("Const".*?shape=")[^"]*', r"\g<1>1000000,1000000", xml, flags=re.DOTALL
    ),
    "a hundred thousand levels": lambda xml: xml.replace(
        "<layers>", "<a>" * 100_000 + "</a>" * 100_000 + "<layers>"
    ),
}


@pytest.mark.slow(1)
@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_openvino_model_reads_nothing_else(
    built: Store, tmp_path: Path, assay: Assay, case: str
) -> None:
    need_engine("openvino")
    canary = tmp_path / "canary"
    os.mkfifo(canary)
    content = hostile(built, lambda xml: MODELS[case](xml).replace("{canary}", str(canary)))
    path = pack(
        tmp_path / "forged.tar.zst",
        list(rerecorded(members(bundle_of(built)), {path_of("openvino"): content}).items()),
    )
    result = assay("check", "--trust", path, "--engine", "openvino", "--time-limit", 20, "--json")
    row = json.loads(result.out)["verdicts"][1]
    assert row["subject"] == "openvino"
    # Some of it is ignored, and the model is the old one then.
    assert (row["status"], result.code) in (("pass", 0), ("failed", 1)), row["reason"]


@pytest.mark.slow(6)
def test_an_endless_loop_in_an_openvino_model_is_stopped(store: Store, assay: Assay) -> None:
    need_engine("openvino")
    import_vendor("openvino", "")
    import openvino
    from openvino import opset13 as ops

    value = ops.parameter([-1, 10], np.float32)
    again = ops.constant(True, np.bool_)
    body = openvino.Model([ops.sin(value).output(0), again.output(0)], [value], "body")
    image = ops.parameter([-1, 1, 28, 28], np.uint8, name="image")
    image.output(0).tensor.set_names({"image"})
    loop = ops.loop(ops.constant(2**62, np.int64), ops.constant(True, np.bool_))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 1])
    rows = ops.reshape(ops.convert(image, "f32"), np.array([-1, 784]), special_zero=False)
    first = ops.gather(rows, np.arange(10), np.array(1))
    loop.set_merged_input(value, first.output(0), body.results[0].output(0))
    last = loop.get_iter_value(body.results[0].output(0), -1)
    last.tensor.set_names({"logits"})
    path = store.root / "endless.xml"
    openvino.serialize(openvino.Model([last], [image], "endless"), path)
    content = zipped(path.read_text(encoding="utf-8"), path.with_suffix(".bin").read_bytes())
    change_engine(store, "openvino", content)
    words = ("verify", "lenet", "--engine", "openvino", "--root", store.root, "--time-limit", 3)
    result = assay(*words)
    assert result.code == 1
    assert "openvino crashed: stopped after 3 s while" in result.err


def test_digests_only_opens_no_graph_and_no_engine(built: Store) -> None:
    code = """
import json, sys
events = []
sys.addaudithook(lambda event, words: events.append([event, str(words[0]), str(words[-1])])
                 if event in ("import", "open", "ctypes.dlopen") else None)
from pipeline.cli.main import main
assert main(["check", "--digests-only", sys.argv[1]]) == 0
print(json.dumps(events))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, bundle_of(built)],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=True,
    )
    events = json.loads(ended.stdout.splitlines()[-1])
    imported = {name for event, name, _ in events if event == "import"}
    assert imported.isdisjoint({engines.get(name).module for name in engines.names()})
    assert {name for event, name, _ in events if event == "ctypes.dlopen"} <= {"None"}
    unpacked = [entry for entry in events if entry[0] == "open" and "/assay-" in entry[1]]
    written = {name for _, name, flags in unpacked if int(flags) & os.O_WRONLY}
    read = {name for _, name, flags in unpacked if not int(flags) & os.O_WRONLY}
    assert any(Path(name).stem == "engine" for name in written)
    assert {Path(name).suffix for name in read & written} == {".json"}
