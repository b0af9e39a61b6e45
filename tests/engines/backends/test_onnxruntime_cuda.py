"""ONNX Runtime's CUDA provider, as far as a machine without a GPU can test it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from engines.backends._onnxruntime_cuda import provider_options
from engines.checks import is_installed
from engines.contract import BuildOptions, OpenOptions
from pipeline.stages import build
from pipeline.workflow.runner import Store
from tests import machines
from tests.machines import H100
from tests.subset import ROOT, python_path

ENGINE = engines.get("onnxruntime_cuda")
needs_provider = pytest.mark.skipif(
    not is_installed(("onnxruntime-gpu",)), reason="onnxruntime-gpu is not installed"
)
# Prints why the CUDA provider does not open a graph: of ours, or of a wrong option.
OPEN = """
import json, sys
import onnxruntime
from engines.backends.onnxruntime_cuda import ENGINE
from engines.backends._onnxruntime_cuda import provider_options
onnxruntime.preload_dlls()
settings = onnxruntime.SessionOptions()
settings.log_severity_level = 4
path = sys.argv[1]
options = {**ENGINE.settings, **provider_options(path, cuda_graph=True), **json.loads(sys.argv[2])}
onnxruntime.InferenceSession(path, settings, providers=[(ENGINE.provider, options)])
"""


@needs_provider
def test_the_layout_is_in_the_built_graph(built: Store, tmp_path: Path) -> None:
    source = built.root / "lenet/fp32/model.onnx"
    plain, nhwc = tmp_path / "plain.onnx", tmp_path / "nhwc.onnx"
    ENGINE.build(source, plain, BuildOptions())
    ENGINE.build(source, nhwc, BuildOptions(prefer_nhwc=True))
    assert plain.read_bytes() == source.read_bytes()
    assert provider_options(plain, cuda_graph=False)["prefer_nhwc"] == "0"
    assert provider_options(nhwc, cuda_graph=False)["prefer_nhwc"] == "1"
    assert onnx.load(nhwc).graph == onnx.load(source).graph
    images = np.zeros((2, 1, 28, 28), np.uint8)
    sessions = [engines.get("onnxruntime").open(path, OpenOptions()) for path in (source, nhwc)]
    first, second = (session.run({"image": images})["logits"] for session in sessions)
    assert np.array_equal(first, second)


@needs_provider
@pytest.mark.skipif(machines.COMPILER is None, reason="the stand-in driver needs a C compiler")
def test_the_provider_knows_all_our_options(built: Store, tmp_path: Path) -> None:
    # It parses its options before it asks for the GPU, so a stand-in for the driver is enough.
    machines.compile_driver(tmp_path)
    graph = tmp_path / "nhwc.onnx"
    ENGINE.build(built.root / "lenet/fp32/model.onnx", graph, BuildOptions(prefer_nhwc=True))

    def opened(**more: str) -> str:
        variables = machines.with_driver(tmp_path, H100) | {"PYTHONPATH": python_path()}
        command = [sys.executable, "-P", "-c", OPEN, str(graph), json.dumps(more)]
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return result.stdout

    assert 'Unknown provider option: "unknown"' in opened(unknown="1")
    assert 'Failed to parse provider option "prefer_nhwc"' in opened(prefer_nhwc="maybe")
    known = opened()
    assert "'prefer_nhwc': '1'" in known
    assert "expr=cudaSetDevice(info_.device_id)" in known


def test_an_option_is_recorded_for_the_engines_that_take_it() -> None:
    options = {"prefer_nhwc": True, "batch_max": 512}
    cuda = build.resolve(build.Params("lenet", engine="onnxruntime_cuda", **options))
    assert (cuda.prefer_nhwc, cuda.batch_max) == (True, 256)
    on_cpu = build.resolve(build.Params("lenet", engine="onnxruntime", **options))
    assert (on_cpu.prefer_nhwc, on_cpu.batch_max) == (False, 256)
    plan = build.resolve(build.Params("lenet", engine="tensorrt_rtx", **options))
    assert (plan.prefer_nhwc, plan.batch_max) == (False, 512)
