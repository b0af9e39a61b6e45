"""The time of each layer, as the engines' own profilers report it."""

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import engines
from engines.backends import aot_inductor, torch_compile
from engines.contract import OpenOptions
from engines.layer_report import multiplies, typical_times
from pipeline.workflow.runner import Store
from tests.conftest import need_engine

FEEDS = {"image": np.zeros((16, 1, 28, 28), np.uint8)}


@pytest.mark.slow(5)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "pytorch"])
def test_the_layers_take_about_as_long_as_the_whole(built: Store, name: str) -> None:
    need_engine(name)
    engine = engines.get(name)
    path = built.root / f"lenet/fp32/{name}/engine{engine.suffix}"
    layers = engine.layer_times(path, OpenOptions(), FEEDS, 20)
    kinds = [layer.kind.lower() for layer in layers]
    assert sum(kind.startswith("conv") for kind in kinds) >= 2
    times = []
    with closing(engine.open(path, OpenOptions())) as session:
        for _ in range(20):
            start = time.perf_counter()
            session.run(FEEDS)
            times.append(time.perf_counter() - start)
    total = sum(layer.seconds for layer in layers)
    assert 0.2 < total / np.median(times) < 5


def test_compiled_pytorch_does_not_tell() -> None:
    for backend in (torch_compile, aot_inductor):
        assert backend.ENGINE.layer_times(Path(), OpenOptions(), FEEDS, 2) == ()


def test_a_layer_has_the_median_of_its_times() -> None:
    runs = [{("a", "Conv", ""): seconds} for seconds in (3.0, 1.0, 9.0)]
    (layer,) = typical_times(runs, str.upper)
    assert (layer.name, layer.kind, layer.node, layer.seconds) == ("a", "Conv", "A", 3.0)


@pytest.mark.parametrize("kind", ["FusedConv", "QLinearConv", "QGemm", "FullyConnected", "linear"])
def test_a_product_multiplies(kind: str) -> None:
    assert multiplies(kind)


@pytest.mark.parametrize(
    "kind", ["QuantizeLinear", "QLinearAdd", "upsample_bilinear2d", "upsample_linear1d", "Convert"]
)
def test_what_only_sounds_like_a_product_does_not(kind: str) -> None:
    assert not multiplies(kind)
