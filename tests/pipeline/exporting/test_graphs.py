"""Exporting a module as the simplest graph that still matches the model."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines.contract import TensorSpec
from exporters.onnx_graph import export_graph
from exporters.program import export_program
from pipeline.exporting.graphs import Source, _simplest
from pipeline.golden import file as goldens
from pipeline.workflow.runner import Store


@pytest.fixture
def source(built: Store) -> Source:
    golden = goldens.load(built.root / "lenet/fp32/golden.npz")
    return Source(nn.Identity(), None, golden, {}, None)


def other(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes something else."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    tensor = max(changed.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return changed


def test_the_simplest_graph_that_matches_the_model_is_used(built: Store, source: Source) -> None:
    graph = onnx.load(built.root / "lenet/fp32/model.onnx")
    wrong = other(graph)
    assert _simplest(iter([graph, wrong]), source)[0] is graph
    assert _simplest(iter([wrong, graph]), source)[0] is graph
    assert _simplest(iter([wrong, wrong, graph]), source)[0] is graph
    # The verify stage reports the mismatch.
    assert _simplest(iter([wrong]), source)[0] is wrong


def test_if_no_graph_matches_the_simplest_is_used(built: Store, source: Source) -> None:
    graph = onnx.load(built.root / "lenet/fp32/model.onnx")
    first, second = other(graph), other(graph)
    assert _simplest(iter([first, second]), source)[0] is first
    reference = {"logits": source.reference.reference["logits"] + 1}
    shifted = dataclasses.replace(
        source, reference=dataclasses.replace(source.reference, reference=reference)
    )
    assert _simplest(iter([graph, second]), shifted)[0] is graph


@pytest.mark.slow(4)
def test_onnxslim_reduces_attention_but_not_convolutions() -> None:
    def nodes(module: nn.Module, *shape: int) -> list[int]:
        example = torch.zeros(2, *shape)
        output = module(example).shape[1:]
        program = export_program(module, [example])
        specs = (
            (TensorSpec("x", "float32", (None, *shape)),),
            (TensorSpec("y", "float32", (None, *output)),),
        )
        translation = export_graph(program, *specs, {})
        counts = [len(graph.graph.node) for graph in translation.graphs]
        assert translation.nodes.total() >= counts[-1]  # sizes are constants
        return counts

    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=torch.tanh)
    slim, simple, plain = nodes(attention.eval(), 5, 8)
    assert slim < simple < plain
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    simple, plain = nodes(convolution, 1, 6, 6)
    assert simple < plain
