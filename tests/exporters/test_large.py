"""A graph that no single protobuf message can hold, through the whole chain."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from exporters import onnx_files
from tests.conftest import Process

pytestmark = [pytest.mark.large, pytest.mark.timeout(1500)]

# A table of 2.3 GB, of which each row of the batch reads four lines: large, but quick to compute.
OWN = """
import numpy as np
import torch
from torch import nn
from pipeline.models import Model

class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9_000_000, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, token):
        return self.head(self.table(token).mean(1))

def make():
    torch.manual_seed(0)
    token = np.random.default_rng(0).integers(0, 9_000_000, (4, 4))
    return Model(network=Large(), inputs={"token": token})
"""


def test_a_graph_above_two_gigabytes_is_exported_and_verified(
    tmp_path: Path, process: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.py").write_text(OWN)
    words = ("large:make", "--root", "artifacts")
    result = process("export", *words, cwd=tmp_path).run(timeout=1200)
    assert result.code == 0, result.err
    graph = tmp_path / "artifacts/large-make/fp32/model.onnx"
    data = graph.with_name("model.onnx.data")
    assert graph.stat().st_size < 1 << 20
    assert data.stat().st_size > 2**31 > onnx_files.LIMIT
    model = onnx.load(graph, load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {data.name}
    record = json.loads((graph.parent / "export.json").read_text())
    assert "large-make/fp32/model.onnx.data" in record["outputs"]
    result = process("verify", *words, "--engine", "graph", cwd=tmp_path).run(timeout=600)
    assert result.code == 0, result.err
    assert "3 of 3" in result.out  # weights
    assert process("inspect", graph, cwd=tmp_path).run().code == 0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory of a process: {peak:.1f} GiB\n")
    assert peak < 20
