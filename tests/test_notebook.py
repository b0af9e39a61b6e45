"""PyTorch and every engine give the numbers of the course notebook's building blocks."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import engines
from engines.checks import choose_device
from engines.contract import BuildOptions, OpenOptions, TensorSpec
from exporters import onnx_files
from exporters.onnx_graph import export_graph
from exporters.program import export_program, save_program
from tests import reference
from tests.reference import Pair

NINE = np.arange(9.0).reshape(3, 3)
SQUARE = np.array([[0.0, 1.0], [2.0, 3.0]])
SIXTEEN = np.arange(16.0).reshape(1, 1, 4, 4)

# The notebook's printed values: Dive into Deep Learning, sections 7.2 to 7.5.


def test_cross_correlation() -> None:
    assert reference.corr2d(NINE, SQUARE).tolist() == [[19, 25], [37, 43]]


def test_edge_detection() -> None:
    image = np.ones((6, 8))
    image[:, 2:6] = 0
    kernel = np.array([[1.0, -1.0]])
    assert reference.corr2d(image, kernel).tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6
    assert reference.corr2d(image.T, kernel).tolist() == [[0] * 5] * 8


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "shape"),
    [
        ((3, 3), (1, 1), (1, 1), (8, 8)),
        ((5, 3), (2, 1), (1, 1), (8, 8)),
        ((3, 3), (1, 1), (2, 2), (4, 4)),
        ((3, 5), (0, 1), (3, 4), (2, 2)),
    ],
)
def test_shapes(kernel: Pair, padding: Pair, stride: Pair, shape: Pair) -> None:
    assert reference.output_shape((8, 8), kernel, padding, stride) == shape
    image, weight = np.ones((1, 1, 8, 8)), np.ones((1, 1, *kernel))
    assert reference.conv2d(image, weight, np.zeros(1), padding, stride).shape == (1, 1, *shape)


def test_several_channels() -> None:
    image, kernel = np.stack([NINE, NINE + 1]), np.stack([SQUARE, SQUARE + 1])
    assert reference.corr2d_multi_in(image, kernel).tolist() == [[56, 72], [104, 120]]
    kernels = np.stack([kernel, kernel + 1, kernel + 2])
    assert reference.corr2d_multi_in_out(image, kernels).tolist() == [
        [[56, 72], [104, 120]],
        [[76, 100], [148, 172]],
        [[96, 128], [192, 224]],
    ]


def test_a_1x1_convolution_is_a_matrix_product() -> None:
    rng = np.random.default_rng(0)
    image, kernels = rng.integers(-9, 10, (3, 3, 3)), rng.integers(-9, 10, (2, 3, 1, 1))
    product = reference.corr2d_multi_in_out_1x1(image, kernels)
    assert np.array_equal(product, reference.corr2d_multi_in_out(image, kernels))


def test_pooling() -> None:
    assert reference.pool2d(NINE, (2, 2)).tolist() == [[4, 5], [7, 8]]
    assert reference.pool2d(NINE, (2, 2), "avg").tolist() == [[2, 3], [5, 6]]


def test_pooling_with_padding_and_stride() -> None:
    assert reference.max_pool2d(SIXTEEN, (3, 3)).tolist() == [[[[10]]]]
    for size, padding, stride in (((3, 3), (1, 1), (2, 2)), ((2, 3), (0, 1), (2, 3))):
        pooled = reference.max_pool2d(SIXTEEN, size, padding, stride)
        assert pooled.tolist() == [[[[5, 7], [13, 15]]]]


def test_pooling_of_several_channels() -> None:
    both = np.concatenate([SIXTEEN, SIXTEEN + 1], axis=1)
    pooled = reference.max_pool2d(both, (3, 3), (1, 1), (2, 2))
    assert pooled.tolist() == [[[[5, 7], [13, 15]], [[6, 8], [14, 16]]]]


# PyTorch runs every combination; every engine runs a selection that has all pairs.

KERNELS = [(1, 1), (2, 2), (3, 3), (5, 5), (5, 3), (3, 5), (1, 2)]
WINDOWS = [*KERNELS, (2, 3)]
PADDINGS = [(0, 0), (1, 1), (2, 2), (2, 1), (0, 1)]
STRIDES = [(1, 1), (2, 2), (3, 4), (2, 3)]
CHANNELS = list(itertools.product((1, 2, 3), (1, 3)))
POOLS = ["max", "avg"]


@dataclass(frozen=True)
class Case:
    """One layer: "conv", "max" or "avg", with its numbers of input and output channels."""

    kind: str
    kernel: Pair
    padding: Pair
    stride: Pair
    channels: Pair

    def __str__(self) -> str:
        pairs = (self.kernel, self.padding, self.stride, self.channels)
        values = zip(("kernel", "padding", "stride", "channels"), pairs, strict=True)
        return "_".join([self.kind, *(f"{name}_{a}_{b}" for name, (a, b) in values)])


CONVOLUTIONS = [
    Case("conv", *combination)
    for combination in itertools.product(KERNELS, PADDINGS, STRIDES, CHANNELS)
]
# PyTorch does not pad by more than half the window. Three channels show that they do not mix.
POOLINGS = [
    Case(kind, window, padding, stride, (3, 3))
    for kind, window, padding, stride in itertools.product(POOLS, WINDOWS, PADDINGS, STRIDES)
    if padding[0] <= window[0] // 2 and padding[1] <= window[1] // 2
]


def place(case: Case) -> int:
    return WINDOWS.index(case.kernel) + PADDINGS.index(case.padding) + STRIDES.index(case.stride)


# Exporting takes some 40 ms per layer, too long for all of them. Engines get every kernel with
# every padding and stride. Pairs of channels and kinds of pooling are distributed over these, so
# that each kernel, padding and stride is combined with each of them.
DEALT = [
    *(case for case in CONVOLUTIONS if case.channels == CHANNELS[place(case) % len(CHANNELS)]),
    *(case for case in POOLINGS if case.kind == POOLS[place(case) % len(POOLS)]),
]

RUNNABLE = [name for name in engines.names() if engines.get(name).available().run]
OTHERS = [name for name in engines.names() if name not in RUNNABLE]

# Integers, so that float32 is exact: no sum in any convolution reaches 2**24. All are different
# and negative, so that a window has one maximum, a zero of the padding would exceed it, and terms
# of an average cannot cancel. Height and width differ, so that exchanging them is an error.
SHAPE = (2, 3, 7, 8)
IMAGES = -1 - np.random.default_rng(1).permutation(np.prod(SHAPE)).reshape(SHAPE)
IMAGES = IMAGES.astype(np.float32)


def weight_and_bias(case: Case) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    c_in, c_out = case.channels
    return rng.integers(1, 10, (c_out, c_in, *case.kernel)), rng.integers(1, 10, c_out)


def layer(case: Case) -> nn.Module:
    if case.kind != "conv":
        kind = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[case.kind]
        return kind(case.kernel, stride=case.stride, padding=case.padding)
    convolution = nn.Conv2d(
        *case.channels, case.kernel, stride=case.stride, padding=case.padding
    ).requires_grad_(False)
    weight, bias = weight_and_bias(case)
    convolution.weight.copy_(torch.from_numpy(weight))
    convolution.bias.copy_(torch.from_numpy(bias))
    return convolution


@cache
def expected(case: Case) -> np.ndarray:
    images = IMAGES[:, : case.channels[0]]
    if case.kind == "conv":
        return reference.conv2d(images, *weight_and_bias(case), case.padding, case.stride)
    pool = {"max": reference.max_pool2d, "avg": reference.avg_pool2d}[case.kind]
    return pool(images, case.kernel, case.padding, case.stride)


def check(case: Case, computed: np.ndarray) -> None:
    wanted = expected(case)
    assert (computed.dtype, computed.shape) == (np.float32, wanted.shape)
    if case.kind != "avg":
        np.testing.assert_array_equal(computed, wanted)
        return
    # An average of m values has at most m + 1 roundings, whatever the order: one of 1 / m, one of
    # a product with it, and m - 1 of the additions. Each is at most half an eps, and does not grow
    # for values of one sign; the other half of the limit is for their products.
    roundings = case.kernel[0] * case.kernel[1] + 1
    bound = roundings * np.finfo(np.float32).eps
    np.testing.assert_allclose(computed, wanted, rtol=bound, atol=0)


class Layers(nn.Module):
    """Many layers in parallel, each with its own output, so that one export has them all."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.channels = [case.channels[0] for case in cases]
        self.layers = nn.ModuleList([layer(case) for case in cases])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = {count: images[:, :count] for count in set(self.channels)}
        return tuple(
            run(first[count]) for count, run in zip(self.channels, self.layers, strict=True)
        )


def export(module: nn.Module, outputs: tuple[TensorSpec, ...], folder: Path) -> dict[str, Path]:
    """Returns the file that engines are built from, by the kind of source."""
    inputs = (TensorSpec("images", "float32", (None, *SHAPE[1:])),)
    program = export_program(module, [torch.zeros(2, *SHAPE[1:])])
    paths = {"program": folder / "model.pt2", "graph": folder / "model.onnx"}
    save_program(program, paths["program"], inputs, outputs)
    onnx_files.write(next(export_graph(program, inputs, outputs, {}).graphs), paths["graph"])
    return paths


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outputs = tuple(
        TensorSpec(str(case), "float32", (None, *expected(case).shape[1:])) for case in DEALT
    )
    return export(Layers(DEALT).eval(), outputs, tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="session", params=RUNNABLE)
def answers(
    request: pytest.FixtureRequest,
    sources: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, np.ndarray]:
    """The outputs of an engine for every case."""
    engine = engines.get(request.param)
    built = tmp_path_factory.mktemp(request.param) / "engine"
    engine.build(sources[engine.source], built, BuildOptions())
    session = engine.open(built, OpenOptions(device=choose_device(engine, "auto"), threads=2))
    computed = session.run({"images": IMAGES})
    session.close()
    return computed


def test_the_layers_extend_the_functions_for_one_image() -> None:
    images = IMAGES[:1].astype(np.float64)
    weight, bias = weight_and_bias(Case("conv", (3, 2), (0, 0), (1, 1), (3, 2)))
    computed = reference.conv2d(images, weight, np.zeros_like(bias))[0]
    assert np.array_equal(computed, reference.corr2d_multi_in_out(images[0], weight))
    for mode, pool in (("max", reference.max_pool2d), ("avg", reference.avg_pool2d)):
        computed = pool(images, (3, 2), stride=(1, 1))[0, 0]
        assert np.array_equal(computed, reference.pool2d(images[0, 0], (3, 2), mode))


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *POOLINGS], ids=str)
def test_pytorch_agrees(case: Case) -> None:
    with torch.inference_mode():
        computed = layer(case)(torch.from_numpy(IMAGES[:, : case.channels[0]]))
    check(case, computed.numpy())


@pytest.mark.slow(15)
@pytest.mark.parametrize("case", DEALT, ids=str)
def test_engine_agrees(case: Case, answers: dict[str, np.ndarray]) -> None:
    check(case, answers[str(case)])


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", OTHERS)
def test_an_engine_that_cannot_run_here_is_only_built(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    engine = engines.get(name)
    computed = engine.available()
    if computed.build:
        engine.build(sources[engine.source], tmp_path / "engine", BuildOptions())
        assert (tmp_path / "engine").stat().st_size
    pytest.skip(computed.reason)


def test_the_selected_cases_pair_all_kernels_paddings_and_strides() -> None:
    for values, field in ((KERNELS, "kernel"), (PADDINGS, "padding"), (STRIDES, "stride")):
        met = {(getattr(case, field), case.channels) for case in DEALT if case.kind == "conv"}
        assert met == set(itertools.product(values, CHANNELS))
    for values, field in ((WINDOWS, "kernel"), (PADDINGS, "padding"), (STRIDES, "stride")):
        met = {(getattr(case, field), case.kind) for case in DEALT if case.kind in POOLS}
        assert met == set(itertools.product(values, POOLS))
