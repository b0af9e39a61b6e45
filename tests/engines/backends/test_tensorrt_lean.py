"""TensorRT's lean runtime in the place of the whole library.

Most tests need only its metadata, as pip would install it; `long` ones use the real wheels. No plan
of the whole TensorRT can be built here: bytes of another plan stand in for one.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import engines
from engines import hardware
from engines.checks import is_installed
from engines.contract import BuildOptions
from engines.errors import NotAvailableError
from pipeline.verification import engine_proof
from pipeline.workflow.runner import Store
from tests import machines
from tests.bundles import members
from tests.conftest import Process, Result
from tests.engines import vendor_wheels
from tests.machines import H100
from tests.subset import python_path

ENGINE = engines.get("tensorrt")
VERSION = "11.4.0.106"
COMPATIBLE = {"version_compatible": True}
GPU = {"name": "the GPU", "driver": "580.1", "compute_capability": "9.0"}
BUILT_BY = {"tensorrt-cu13": VERSION, "gpu_compute_capability": "9.0"}
RUNTIME = f"tensorrt-lean-cu13-bindings {VERSION}"

pytestmark = pytest.mark.skipif(
    is_installed(("tensorrt-cu13", "tensorrt")), reason="this machine has the whole TensorRT"
)


@pytest.fixture
def lean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which pip has installed the lean runtime."""
    folder = tmp_path / f"site/tensorrt_lean_cu13_bindings-{VERSION}.dist-info"
    folder.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: tensorrt-lean-cu13-bindings\nVersion: {VERSION}\n"
    (folder / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(folder.parent)
    if hardware.version("tensorrt-lean-cu13-bindings") != VERSION:
        pytest.skip("this process hides TensorRT (tests.machines.without)")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: (GPU,))
    monkeypatch.setattr(hardware, "no_gpu", lambda: "")
    monkeypatch.setattr(hardware, "runtime_problem", lambda _: "")


def add_plan(store: Store, **params: object) -> Path:
    """Adds a plan of TensorRT to the store, with the record of such a build."""
    folder, other = (store.root / "lenet/fp32" / name for name in ("tensorrt", "onnxruntime"))
    shutil.copytree(other, folder, ignore=shutil.ignore_patterns("verify.json", "verdict.json"))
    (folder / "engine.onnx").rename(folder / "engine.plan")
    text = (folder / "build.json").read_text().replace("fp32/onnxruntime/", "fp32/tensorrt/")
    text = text.replace("engine.onnx", "engine.plan")
    content = json.loads(text)
    content["facts"] = BUILT_BY
    content["params"] |= {"engine": "tensorrt", **params}
    (folder / "build.json").write_text(json.dumps(content))
    return folder / "engine.plan"


@pytest.mark.usefixtures("lean")
def test_the_lean_runtime_runs_and_does_not_build(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hardware.gpus():
        state = ENGINE.available()
        assert (state.build, state.run) == (False, False)
        assert state.reason.endswith(hardware.no_gpu())
    pretend_gpu(monkeypatch)
    state = ENGINE.available()
    assert (state.build, state.run) == (False, True)
    assert state.reason == (
        f"{RUNTIME} opens only plans built with --version-compatible, and builds none, the GPU"
    )
    assert ENGINE.fingerprint()["tensorrt-lean-cu13-bindings"] == VERSION
    assert ENGINE.runtime_module() == "tensorrt_lean_bindings"
    with pytest.raises(NotAvailableError) as caught:
        ENGINE.build(Path("graph"), Path("engine"), BuildOptions())
    assert "tensorrt-cu13" in caught.value.hint


@pytest.mark.usefixtures("lean")
def test_the_whole_library_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    version = hardware.version
    whole = {"tensorrt-cu13": "11.3.0.99"}
    monkeypatch.setattr(hardware, "version", lambda name: whole.get(name) or version(name))
    assert ENGINE.runtime_module() == "tensorrt"
    assert ENGINE.fingerprint()["tensorrt-cu13"] == "11.3.0.99"
    assert "lean" not in ENGINE.available().reason


@pytest.mark.usefixtures("lean", "gpu")
@pytest.mark.parametrize(
    ("built_by", "params", "why"),
    [
        (BUILT_BY, COMPATIBLE, ""),
        (BUILT_BY | {"tensorrt-cu13": f"{VERSION}.post1"}, COMPATIBLE, ""),
        (BUILT_BY, {}, f"{RUNTIME} opens only plans built with --version-compatible"),
        (
            BUILT_BY | {"tensorrt-cu13": "11.3.0.99"},
            COMPATIBLE,
            f"built with tensorrt-cu13 11.3.0.99, but {RUNTIME} opens only plans of its own",
        ),
        ({"gpu_compute_capability": "9.0"}, COMPATIBLE, "built with an unknown version"),
        (BUILT_BY | {"gpu_compute_capability": "8.9"}, COMPATIBLE, "this machine has gpu_compute"),
        (
            BUILT_BY | {"gpu_compute_capability": "8.9"},
            COMPATIBLE | {"hardware_compatible": True},
            "",
        ),
    ],
)
def test_only_version_compatible_plans_of_its_version_are_opened(
    built_by: dict[str, str], params: dict[str, bool], why: str
) -> None:
    answer = ENGINE.incompatibility(built_by, params)
    assert why in answer
    assert bool(why) == bool(answer)


@pytest.mark.usefixtures("lean", "gpu")
def test_the_hint_for_another_plan_is_a_build_that_would_fit(store: Store) -> None:
    plan = add_plan(store, strip_weights=True, batch_max=64)
    with pytest.raises(NotAvailableError, match="opens only plans built with") as caught:
        engine_proof.require_fit(ENGINE, plan)
    assert caught.value.hint == (
        f"build it where tensorrt-cu13 {VERSION} is installed: `assay build lenet --engine tensorrt"
        " --batch-max 64 --version-compatible`"
    )
    verdict = engine_proof.prove(
        "tensorrt", plan, plan.parents[1] / "golden.npz", "fp32", device="cuda", threads=1
    )
    assert verdict.status == "not run"
    assert "--version-compatible" in verdict.reason


@pytest.mark.usefixtures("lean")
def test_a_bundle_says_that_the_lean_runtime_is_enough(
    store: Store, assay: Callable[..., Result]
) -> None:
    add_plan(store, **COMPATIBLE)
    where = ("--root", store.root, "--dist", store.dist)
    words = ("lenet", *where, "--engine", "tensorrt,onnxruntime")
    assert assay("verify", *words).code in (0, 4)  # 4: not run on this machine
    result = assay("bundle", *words)
    assert result.code == 0, result.err
    contents = members(next(store.dist.glob("*.tar.zst")))
    readme = next(text for name, text in contents.items() if name.endswith("README.md")).decode()
    install = f"tensorrt-lean-cu13-bindings=={VERSION} tensorrt-lean-cu13-libs=={VERSION}"
    assert readme.count(f"    pip install {install}\n") == 1
    manifest = next(text for name, text in contents.items() if name.endswith("manifest.json"))
    entries = json.loads(manifest)["models"]["fp32"]["engines"]
    assert entries["tensorrt"]["smaller_runtime"].endswith(install)
    assert "smaller_runtime" not in entries["onnxruntime"]


def test_other_plans_have_no_smaller_runtime() -> None:
    assert ENGINE.smaller_runtime(BUILT_BY, {}) == ""
    assert engines.get("tensorrt_rtx").smaller_runtime(BUILT_BY, COMPATIBLE) == ""


@pytest.fixture
def wheels() -> Path:
    """A folder with the real wheels of the lean runtime."""
    try:
        return vendor_wheels.installed("lean runtime 11.4")
    except vendor_wheels.UnavailableWheelError as error:
        pytest.skip(str(error))


@pytest.mark.long
@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU")
def test_the_real_runtime_reports_a_missing_driver_and_does_not_crash(wheels: Path) -> None:
    code = (
        "import tensorrt_lean_bindings as vendor\n"
        "from engines.backends._tensorrt_library import logger_of, started\n"
        "from engines.errors import NotAvailableError\n"
        "try: started(vendor.Runtime, logger_of(vendor), 'tensorrt').deserialize_cuda_engine(b'')\n"
        "except NotAvailableError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": python_path(wheels)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tensorrt cannot be started here: " in done.stdout
    assert "CUDA initialization failure with error: 35" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU")
def test_commands_with_the_real_runtime_and_no_driver(
    store: Store, wheels: Path, process: Callable[..., Process]
) -> None:
    add_plan(store, **COMPATIBLE)
    machine = {"PYTHONPATH": python_path(wheels)}
    where = ("--root", store.root, "--dist", store.dist)
    words = ("lenet", *where, "--engine", "tensorrt")
    verified = process("verify", *words).run(machine=machine)
    assert verified.code == 4, verified.err
    assert process("bundle", *words).run(machine=machine).code == 0
    bundle = max(store.dist.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime)
    checked = process("check", "--trust", bundle).run(machine=machine)
    assert checked.code == 0, checked.err
    for result in (verified, checked):
        assert "not run" in result.out
        assert RUNTIME in result.out
        assert "libcuda.so.1" in result.out
        assert "Traceback" not in result.err
    doctor = process("doctor", "--json").run(machine=machine)
    state = json.loads(doctor.out)["engines"]["tensorrt"]
    assert (state["build"], state["run"]) == (False, False)
    assert state["reason"].startswith(RUNTIME)


@pytest.mark.long
@pytest.mark.skipif(machines.COMPILER is None, reason="the stand-in driver needs a C compiler")
def test_doctor_imports_the_real_runtime_where_there_is_a_gpu(
    wheels: Path, tmp_path: Path, process: Callable[..., Process]
) -> None:
    machines.compile_driver(tmp_path)
    machine = machines.with_driver(tmp_path, H100)

    def state() -> dict[str, object]:
        result = process("doctor", "--json").run(machine=machine)
        return json.loads(result.out)["engines"]["tensorrt"]

    machine["PYTHONPATH"] = python_path(wheels)
    assert (state()["build"], state()["run"]) == (False, True)
    broken = tmp_path / "broken"
    shutil.copytree(wheels, broken, ignore=shutil.ignore_patterns("*.so.11"))
    machine["PYTHONPATH"] = python_path(broken)
    answer = state()
    assert (answer["build"], answer["run"]) == (False, False)
    assert "libnvinfer_lean.so.11" in str(answer["reason"])


@pytest.mark.long
@pytest.mark.skipif(machines.COMPILER is None, reason="the stand-in driver needs a C compiler")
def test_a_driver_that_cuda_refuses_is_reported(
    store: Store, wheels: Path, tmp_path: Path, process: Callable[..., Process]
) -> None:
    add_plan(store, **COMPATIBLE)
    machines.compile_driver(tmp_path)
    machine = {**machines.with_driver(tmp_path, H100), "PYTHONPATH": python_path(wheels)}
    words = ("lenet", "--root", store.root, "--engine", "tensorrt")
    result = process("verify", *words).run(machine=machine)
    assert result.code == 4, result.err
    assert "tensorrt was not run on this machine: CUDA device 0 cannot be used here" in result.err
