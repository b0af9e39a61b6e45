"""`assay build --repeat` and `assay check --rebuild`."""

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engines import hardware
from engines.backends._onnxruntime import OnnxRuntimeSession
from pipeline.cli import stage_runs
from pipeline.rebuilding import region, spread
from pipeline.workflow.digests import dump_json
from pipeline.workflow.runner import Store
from tests.bundles import FOLDER, bundle_of, members, pack, rerecorded, resigned
from tests.conftest import Process, Result
from tests.pipeline.report.page.pages import cells, parse

Assay = Callable[..., Result]
BUILDS = "lenet/fp32/onnxruntime/builds.json"
SAME = "onnxruntime", "openvino"


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def repeated(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The built chain, in which ONNX Runtime's engine was built three times. Read-only."""
    folder = tmp_path_factory.mktemp("repeated")
    store = dataclasses.replace(built, root=folder / "artifacts", dist=folder / "dist")
    shutil.copytree(built.root, store.root)
    stage_runs.run_stage("build", {"model": "lenet", "engine": ["onnxruntime"], "repeat": 3}, store)
    stage_runs.run_stage("verify", {"model": "lenet", "engine": ["onnxruntime"]}, store)
    chosen = ("onnxruntime", "openvino", "pytorch", "tensorrt_rtx")
    chosen = tuple(name for name in chosen if (store.root / "lenet" / "fp32" / name).exists())
    arguments = {"model": "lenet", "engine": [*chosen], "measurements": False}
    stage_runs.run_stage("bundle", arguments, store)
    return store


def forged(store: Store, tmp_path: Path, change: Callable[[dict], object]) -> Path:
    """Returns a bundle with other builds, and records to match."""
    contents = members(bundle_of(store))
    builds = json.loads(contents[f"{FOLDER}/{BUILDS}"])
    change(builds)
    return pack(
        tmp_path / "forged.tar.zst", [*rerecorded(contents, {BUILDS: dump_json(builds)}).items()]
    )


def narrow(builds: dict) -> None:
    builds["region"]["errors"]["logits"]["rms"] = 0.01


def hurried(builds: dict) -> None:
    builds["region"]["latency"] = dict.fromkeys(builds["region"]["latency"], 1e-9)


def rebuilt(result: Result) -> dict:
    document = json.loads(result.out)
    return {entry["name"]: entry for entry in document["rebuilt"]}


@pytest.mark.slow(15)
def test_the_page_shows_the_builds_and_their_region(
    repeated: Store, assay: Assay, tmp_path: Path
) -> None:
    known = region.load(repeated.root / BUILDS)
    place = ("--root", repeated.root, "--dist", repeated.dist)
    page = tmp_path / "page.html"
    assert assay("report", "lenet", "--html", page, *place).code == 0
    parts = parse(page.read_text()).all("section")
    section = next(part for part in parts if "Several builds" in part.text)
    assert "onnxruntime in fp32" in section.text
    texts = cells(section)
    assert {"1", "2", "3", "accepted"} <= {*texts}
    assert texts.count(known.builds[0].sha256[:12]) == 3  # the same bytes each time


@pytest.mark.slow(15)
def test_the_builds_are_recorded_printed_and_bundled(repeated: Store, assay: Assay) -> None:
    builds = region.load(repeated.root / BUILDS)
    assert len(builds.builds) == 3
    assert {build.status for build in builds.builds} == {"pass"}
    assert builds.region is not None
    manifest = json.loads(members(bundle_of(repeated))[f"{FOLDER}/manifest.json"])
    engines = manifest["models"]["fp32"]["engines"]
    assert engines["onnxruntime"]["builds"] == BUILDS
    assert "builds" not in engines["openvino"]
    place = ("--root", repeated.root, "--dist", repeated.dist)
    result = assay("build", "lenet", "--engine", "onnxruntime", "--repeat", 3, *place)
    assert result.code == 0
    assert "onnxruntime: 3 builds" in result.out
    assert "accepted" in result.out
    assert (
        "onnxruntime: 3 builds: all of the same bytes; rms error 0."
        in assay("report", "lenet", *place).out
    )
    document = json.loads(assay("report", "lenet", "--json", *place).out)
    assert len(document["builds"]["onnxruntime"]["builds"]) == 3


@pytest.mark.slow(10)
def test_one_build_removes_what_several_differed_in(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    shutil.copytree(repeated.root, tmp_path / "artifacts")
    words = ("build", "lenet", "--engine", "onnxruntime", "--root", tmp_path / "artifacts")
    result = assay(*words)  # as often as before
    assert result.code == 0, result.err
    assert "nothing changed, skipped" in result.err
    assert (tmp_path / "artifacts" / BUILDS).exists()
    result = assay(*words, "--repeat", 1)
    assert result.code == 0, result.err
    assert not (tmp_path / "artifacts" / BUILDS).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--repeat", 0), "--repeat 0 is out of range"),
        (("--repeat", 2, "--strip-weights", "--engine", "tensorrt"), "--repeat proves each build"),
    ],
)
def test_repeat_refuses_what_it_cannot_judge(
    built: Store, assay: Assay, words: tuple[object, ...], message: str
) -> None:
    result = assay("build", "lenet", *words, "--root", built.root)
    assert result.code == 2
    assert message in result.err


@pytest.mark.slow(30)
def test_the_new_engines_are_judged_and_bundled(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    out, contents = tmp_path / "new.tar.zst", members(bundle_of(repeated))
    manifest = json.loads(contents[f"{FOLDER}/manifest.json"])
    for engine in manifest["models"]["fp32"]["engines"].values():
        engine["built_with"]["cpu"] = "Another CPU"
    contents = resigned({**contents, f"{FOLDER}/manifest.json": dump_json(manifest)})
    elsewhere = pack(tmp_path / "elsewhere.tar.zst", [*contents.items()])
    result = assay("check", elsewhere, "--rebuild", "--trust", "--out", out, "--json")
    assert result.code == 0, result.err
    entries = rebuilt(result)
    assert {*SAME} <= entries.keys()
    assert "pytorch" not in entries
    assert "pytorch is built from lenet/fp32/model.pt2, which the bundle does not" in result.err
    for name in SAME:
        assert entries[name]["verdict"]["status"] == "pass"
        assert not entries[name]["outside"]
        assert entries[name]["same_file"]
    assert entries["onnxruntime"]["same_kind"]
    assert entries["openvino"]["region"] is None

    checked = json.loads(assay("check", out, "--trust", "--json").out)
    verdicts = {entry["subject"]: entry["status"] for entry in checked["verdicts"]}
    (name,) = [name for name in verdicts if name.startswith("onnxruntime@")]
    label = name.partition("@")[2]
    assert {verdicts[f"{engine}@{label}"] for engine in SAME} == {"pass"}
    entry = checked["manifest"]["models"]["fp32"]["engines"][name]
    assert entry["path"] == f"targets/{label}/lenet/fp32/onnxruntime/engine.onnx"
    before = json.loads(assay("check", bundle_of(repeated), "--digests-only", "--json").out)
    assert checked["links"] > before["links"]

    # The new engine can be built again in its turn, from its own part of the chain.
    other = tmp_path / "newer.tar.zst"
    words = ("check", out, "--rebuild", "--trust", "--engine", name, "--out", other, "--json")
    again = assay(*words)
    assert again.code == 0, again.err
    assert [*rebuilt(again)] == [name]
    assert assay("check", other, "--digests-only").code == 0


@pytest.mark.slow(10)
def test_the_same_engine_of_the_same_machine_is_not_added(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    out = tmp_path / "new.tar.zst"
    words = ("check", bundle_of(repeated), *ONE, "--out", out, "--json")
    result = assay(*words)
    assert result.code == 0, result.err
    assert rebuilt(result)["onnxruntime"]["same_file"]
    checked = json.loads(assay("check", out, "--digests-only", "--json").out)
    before = json.loads(assay("check", bundle_of(repeated), "--digests-only", "--json").out)
    assert checked["manifest"]["models"] == before["manifest"]["models"]


@pytest.mark.slow(5)
def test_an_engine_that_only_builds_here_proves_nothing(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    if hardware.gpus() or not (repeated.root / "lenet" / "fp32" / "tensorrt_rtx").exists():
        pytest.skip("TensorRT for RTX runs here, or is not installed")
    out = tmp_path / "new.tar.zst"
    words = ("--rebuild", "--trust", "--engine", "tensorrt_rtx", "--out", out)
    result = assay("check", bundle_of(repeated), *words)
    assert result.code == 4
    assert "tensorrt_rtx in fp32: built, not run" in result.out
    assert "nothing is proved" in result.err
    assert not out.exists()


@pytest.mark.slow(5)
def test_a_program_is_built_only_if_the_bundle_has_it(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    words = ("--rebuild", "--trust", "--engine", "pytorch")
    result = assay("check", bundle_of(repeated), *words)
    assert result.code == 4
    assert "--include source" in result.err
    place = ("--root", repeated.root, "--dist", tmp_path / "dist", "--no-measurements")
    words = (*words, "--json")
    assert assay("bundle", "lenet", "--engine", "pytorch", "--include", "source", *place).code == 0
    result = assay("check", tmp_path / "dist" / "lenet-fp32.tar.zst", *words)
    assert result.code == 0, result.err
    assert rebuilt(result)["pytorch"]["verdict"]["status"] == "pass"


ONE = ("--rebuild", "--trust", "--engine", "onnxruntime")


@pytest.mark.slow(5)
def test_an_engine_outside_of_the_region_is_a_mismatch(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    out = tmp_path / "new.tar.zst"
    result = assay("check", forged(repeated, tmp_path, narrow), *ONE, "--out", out)
    assert result.code == 3
    assert "outside of the acceptance region: onnxruntime: logits: rms error is 0" in result.err
    assert not out.exists()


@pytest.mark.slow(5)
def test_an_engine_that_is_only_slower_has_an_exit_code_of_its_own(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    result = assay("check", forged(repeated, tmp_path, hurried), *ONE)
    assert result.code == 5
    assert "slower than the acceptance region: onnxruntime: batch 1 takes" in result.err


@pytest.mark.slow(5)
def test_the_speed_of_another_kind_of_machine_is_only_told(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    def elsewhere(builds: dict) -> None:
        hurried(builds)
        builds["machine"]["cpu"] = "another"

    result = assay("check", forged(repeated, tmp_path, elsewhere), *ONE)
    assert result.code == 0, result.err
    assert "measured on another kind of machine, so not judged: batch 1 takes" in result.out


@pytest.mark.usefixtures("in_process")
def test_a_less_exact_engine_that_the_verdict_accepts_is_outside(
    repeated: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxRuntimeSession.run

    def inexact(self: OnnxRuntimeSession, feeds: dict) -> dict:
        outputs = run(self, feeds)
        random = np.random.default_rng(0)
        return {
            name: array + random.normal(0, 1.6e-6, array.shape).astype(array.dtype)
            for name, array in outputs.items()
        }

    monkeypatch.setattr(OnnxRuntimeSession, "run", inexact)
    result = assay("check", bundle_of(repeated), *ONE, "--json")
    assert result.code == 3, result.err
    (entry,) = json.loads(result.out)["rebuilt"]
    assert entry["verdict"]["status"] == "pass"
    assert entry["outside"]


@pytest.mark.usefixtures("in_process")
def test_a_wrong_engine_is_a_mismatch(
    repeated: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxRuntimeSession.run
    monkeypatch.setattr(
        OnnxRuntimeSession,
        "run",
        lambda self, feeds: {name: array * 1.01 for name, array in run(self, feeds).items()},
    )
    result = assay("check", bundle_of(repeated), *ONE)
    assert result.code == 3
    assert "onnxruntime is not proved equal to the model" in result.err


def test_a_region_without_records_to_match_is_refused(
    repeated: Store, tmp_path: Path, assay: Assay
) -> None:
    contents = members(bundle_of(repeated))
    builds = json.loads(contents[f"{FOLDER}/{BUILDS}"])
    narrow(builds)
    contents = resigned({**contents, f"{FOLDER}/{BUILDS}": dump_json(builds)})
    result = assay("check", pack(tmp_path / "forged.tar.zst", [*contents.items()]), *ONE)
    assert result.code == 1
    assert "builds.json is not the file that lenet/fp32/onnxruntime/build.json names" in result.err


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": ".."}, "which is not onnxruntime in fp32"),
        ({"engine": "openvino"}, "which is not onnxruntime in fp32"),
        ({"batch_min": "1"}, "'1' is not a value of --batch-min"),
        ({"later": 1}, "has options that this version does not have: later"),
    ],
)
def test_a_record_that_leads_elsewhere_is_refused(
    repeated: Store, tmp_path: Path, assay: Assay, params: dict[str, object], message: str
) -> None:
    contents = members(bundle_of(repeated))
    name = "lenet/fp32/onnxruntime/build.json"
    record = json.loads(contents[f"{FOLDER}/{name}"])
    record["params"] |= params
    contents = rerecorded(contents, {name: dump_json(record)})
    result = assay("check", pack(tmp_path / "forged.tar.zst", [*contents.items()]), *ONE)
    assert result.code == 1
    assert message in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "x.tar.zst"), "--out without --rebuild"),
        (("--rebuild", "--digests-only"), "--rebuild and --digests-only exclude each other"),
        (("--rebuild", "--url", "http://127.0.0.1:1"), "--rebuild and --url exclude each other"),
        (("--rebuild", "--trust", "--out", "x.zip"), "x.zip is not the name of a bundle"),
        (("--rebuild", "--trust", "--engine", "opnvino"), "did you mean 'openvino'"),
        (("--rebuild",), "without a terminal nobody can be asked"),
    ],
)
def test_wrong_usage_builds_nothing(
    repeated: Store, assay: Assay, words: tuple[str, ...], message: str
) -> None:
    result = assay("check", bundle_of(repeated), *words)
    assert result.code == 2
    assert message in result.err
    assert "running" not in result.err


def test_an_existing_file_is_not_replaced(repeated: Store, tmp_path: Path, assay: Assay) -> None:
    out = tmp_path / "new.tar.zst"
    out.write_bytes(b"mine")
    result = assay("check", bundle_of(repeated), *ONE, "--out", out)
    assert result.code == 2
    assert f"{out} exists, and is not replaced" in result.err
    assert out.read_bytes() == b"mine"


@pytest.mark.slow(10)
def test_an_interrupted_rebuild_leaves_nothing(
    repeated: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    (tmp_path / "tmp").mkdir()
    out = tmp_path / "out" / "new.tar.zst"
    out.parent.mkdir()
    started = process("check", bundle_of(repeated), *ONE, "--out", out).start(
        machine={"TMPDIR": str(tmp_path / "tmp")}
    )
    while "build: running" not in (line := started.stderr.readline()):
        assert line, "it ended"
    time.sleep(0.2)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert not [*out.parent.iterdir()]
    assert not [*(tmp_path / "tmp").iterdir()]
