"""PyTorch models with more dynamic axes than the batch."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from exporters.onnx_nodes import spec_of
from pipeline.golden import file as goldens
from tests.conftest import Result, need_engine

SOURCE = """
import dataclasses

import torch
from torch import nn
from torch.nn import functional

import assay

SIZES = {2: ("height", 16, 64), 3: ("width", 16, 64)}


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x):
        return self.up(functional.relu(self.down(x)))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 4 + 3, 1)

    def forward(self, image):
        one = functional.silu(self.first(image.to(self.head.weight.dtype) / 255))
        outputs = []
        for features in (one, functional.silu(self.second(one))):
            rows = self.head(features).flatten(2).transpose(1, 2)
            outputs.append({"boxes": rows[..., :4], "scores": rows[..., 4:].sigmoid()})
        return outputs


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens, mask):
        rows = self.layers(self.embed(tokens), src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).to(rows.dtype)
        return (rows * weight).sum(1) / weight.sum(1).clamp(min=1)


class Fixed(Segmenter):
    def forward(self, x):
        return super().forward(x).view(-1, 2, 24 * 32)


def segmenter():
    return assay.Model(
        network=Segmenter(), inputs={"x": torch.rand(2, 3, 24, 32)}, dynamic={"x": SIZES}
    )


def detector():
    return assay.Model(network=Detector(), image=(3, 24, 32), dynamic={"image": SIZES})


def encoder():
    tokens, mask = torch.randint(0, 50, (3, 12)), torch.ones(3, 12, dtype=torch.bool)
    mask[1, 7:] = False
    axes = {1: ("length", 4, 40)}
    return assay.Model(
        network=Encoder(),
        inputs={"tokens": tokens, "mask": mask},
        dynamic={"tokens": axes, "mask": axes},
    )


def fixed():
    return assay.Model(
        network=Fixed(), inputs={"x": torch.rand(2, 3, 24, 32)}, dynamic={"x": SIZES}
    )


def unknown():
    return assay.Model(network=Segmenter(), image=(3, 24, 32), dynamic={"x": SIZES})


def malformed():
    return assay.Model(network=Segmenter(), image=(3, 24, 32), dynamic={"image": {2: (16, 64)}})


def a_list():
    return assay.Model(network=Segmenter(), image=(3, 24, 32), dynamic={"image": [2, 3]})


def only_one():
    model = encoder()
    return dataclasses.replace(model, dynamic={"tokens": model.dynamic["tokens"]})


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 20, 8))

    def forward(self, x):
        return x + self.places[:, : x.shape[1]]


def too_large():
    axes = {"x": {1: ("length", 2, 40)}}
    return assay.Model(network=Table(), inputs={"x": torch.rand(2, 7, 8)}, dynamic=axes)


def backwards():
    axes = {2: ("height", 64, 16)}
    return assay.Model(network=Segmenter(), image=(3, 24, 32), dynamic={"image": axes})


def one_name():
    axes = {2: ("size", 16, 64), 3: ("size", 16, 64)}
    return assay.Model(network=Segmenter(), image=(3, 24, 32), dynamic={"image": axes})


class Pooled(nn.Module):
    def forward(self, x):
        return functional.adaptive_avg_pool2d(x, 3)


def pooled():
    return assay.Model(
        network=Pooled(), inputs={"x": torch.rand(2, 3, 24, 32)}, dynamic={"x": SIZES}
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def recurrent():
    axes = {1: ("length", 2, 9)}
    return assay.Model(network=Recurrent(), inputs={"x": torch.rand(2, 7, 6)}, dynamic={"x": axes})


class Projected(Recurrent):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True, proj_size=3)


def projected():
    return assay.Model(network=Projected(), inputs={"x": torch.rand(2, 2, 6)})


def too_small():
    axes = {2: ("height", 32, 64)}
    return assay.Model(network=Segmenter(), image=(3, 24, 32), dynamic={"image": axes})
"""
ENGINES = ("--engine", "onnxruntime", "--engine", "openvino", "--engine", "pytorch")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow(20)
@pytest.mark.parametrize(
    ("name", "sizes", "inputs", "outputs"),
    [
        pytest.param(
            "segmenter",
            ["3x24x32", "3x16x16", "3x64x64"],
            ["x: float32[batch, 3, height, width]"],
            ["output: float32[batch, 2, output_2, output_3]"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "detector",
            ["3x24x32", "3x16x16", "3x64x64"],
            ["image: uint8[batch, 3, height, width]"],
            [
                f"output_{index}_{part}: float32[batch, output_{index}_{part}_1, {size}]"
                for index in (0, 1)
                for part, size in (("boxes", 4), ("scores", 3))
            ],
            marks=pytest.mark.long,
        ),
        (
            "encoder",
            ["12, 12", "4, 4", "40, 40"],
            ["tokens: int64[batch, length]", "mask: bool[batch, length]"],
            ["output: float32[batch, 16]"],
        ),
    ],
)
def test_engines_are_proved_at_every_size(
    assay: Callable[..., Result],
    name: str,
    sizes: list[str],
    inputs: list[str],
    outputs: list[str],
) -> None:
    model = f"nets.py:{name}"
    assert assay("export", model).code == 0
    folder = Path(f"artifacts/nets.py-{name}/fp32")
    golden = goldens.load(folder / "golden.npz")
    assert [part.size for part in (golden, *golden.others)] == sizes
    graph = onnx.load(folder / "model.onnx").graph
    assert [str(spec_of(value)) for value in graph.input] == inputs
    assert [str(spec_of(value)) for value in graph.output] == outputs
    assert assay("build", model, *ENGINES).code == 0
    judged = assay("verify", model, "--engine", "graph", *ENGINES)
    assert judged.code == 0, judged.err
    assert all(f"at {size}" in judged.out for size in sizes)
    need_engine("tensorrt_rtx", run=False)
    assert assay("build", model, "--engine", "tensorrt_rtx", "--batch-opt", "1").code == 0


@pytest.mark.long
def test_half_types_and_quantization_at_every_size(assay: Callable[..., Result]) -> None:
    for words in (("fp16",), ("int8", "--calibrate-on-noise")):
        exported = assay("export", "nets.py:detector", "--precision", *words)
        assert exported.code == 0, exported.err
        judged = assay("verify", "nets.py:detector", "--precision", words[0])
        assert judged.code == 0, judged.err


def test_a_model_with_a_fixed_size_is_refused(assay: Callable[..., Result]) -> None:
    failed = assay("export", "nets.py:fixed")
    assert failed.code == 1
    assert "nets.py" in failed.err
    assert "view(-1, 2, 24 * 32)" in failed.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown", "Model.dynamic names the input 'x', but the model takes image"),
        ("malformed", "Model.dynamic has 2: (16, 64) for 'image'"),
        ("a_list", "Model.dynamic has [2, 3] for 'image'"),
        ("only_one", "the model fixes axis 1 of tokens (length), which Model.dynamic names, to 12"),
        ("too_large", "(at 40x8; the usual size runs)"),
        ("backwards", 'write 2: ("height", 16, 64)'),
        ("one_name", "usually 32, as axis 3 of 'image', but 16 to 64, usually 24, as axis 2 of"),
        ("pooled", "the model pools height and width, which Model.dynamic names, to 3x3"),
        ("recurrent", "give --exporter torchscript, which keeps an LSTM"),
        ("too_small", "height is 32 to 64, but the example of 'image' has 24"),
    ],
)
def test_wrong_declarations_are_explained(
    assay: Callable[..., Result], name: str, message: str
) -> None:
    failed = assay("export", f"nets.py:{name}")
    assert failed.code == 1
    assert message in failed.err


@pytest.mark.slow(5)
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # of PyTorch, about its speed
def test_an_lstm_with_projections_becomes_its_steps(assay: Callable[..., Result]) -> None:
    exported = assay("export", "nets.py:projected")
    assert exported.code == 0, exported.err
    judged = assay("verify", "nets.py:projected")
    assert judged.code == 0, judged.err
    graph = onnx.load("artifacts/nets.py-projected/fp32/model.onnx").graph
    assert "LSTM" not in {node.op_type for node in graph.node}
