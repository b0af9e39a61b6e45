"""What each layer loses of what the machine attains."""

import numpy as np
import onnx
import pytest

import engines
from engines.contract import OpenOptions
from engines.layer_report import LayerTime
from exporters.onnx_work import work_of
from exporters.work import Product
from pipeline.benchmarking.intervals import Interval
from pipeline.benchmarking.layer_times import losses, products_of
from pipeline.benchmarking.roofline import Roofline
from pipeline.workflow.runner import Store
from tests.conftest import need_engine

# 1000 operations and 10 bytes a second.
ROOFLINE = Roofline(
    intensity=1.0,
    peak=1000.0,
    peaks={"fp32": 1000.0},
    peak_by=(),
    bandwidth=10.0,
    bandwidth_by="read",
    attainable=1000.0,
    bound="computation",
    reached=500.0,
    share=Interval(0.5, 0.5, 0.5),
)


def layer(name: str, seconds: float, kind: str = "Conv") -> LayerTime:
    return LayerTime(name, kind, "", name, seconds)


def product(operations: int, *names: str, weights: int = 0) -> Product:
    return Product(frozenset(names), "fp32", operations, weights)


def test_a_layer_loses_what_it_takes_beyond_its_own_bound() -> None:
    # The profiler makes everything take twice as long.
    layers = [layer("a", 4.0), layer("b", 12.0), layer("pool", 4.0, "MaxPool")]
    products = [product(1000, "a"), product(1000, "b", weights=50)]
    entries = losses(layers, products, ROOFLINE, seconds=10.0)
    assert [entry["name"] for entry in entries] == ["pool", "a", "b"]
    pool, first, second = entries
    assert (pool["lost"], pool["reached"]) == (pytest.approx(0.2), None)
    assert (first["lost"], first["reached"]) == (pytest.approx(0.1), pytest.approx(0.5))
    # 5 s for 50 bytes, of 6 s.
    assert (second["lost"], second["reached"]) == (pytest.approx(0.1), pytest.approx(5 / 6))


def test_without_the_product_of_each_layer_the_slowest_is_first() -> None:
    layers = [layer("a", 1.0), layer("b", 3.0)]
    for products, roofline in (([product(1, "a")], ROOFLINE), ([], ROOFLINE), ([], None)):
        entries = losses(layers, products, roofline, seconds=4.0)
        assert [(entry["name"], entry["lost"]) for entry in entries] == [("b", None), ("a", None)]


def test_of_two_products_that_are_added_one_has_the_name_of_the_sum() -> None:
    main, side = product(1, "main", "sum"), product(2, "side", "sum")
    assert products_of([layer("sum", 1.0), layer("side", 1.0)], [side, main]) == {0: main, 1: side}
    assert products_of([layer("sum", 1.0), layer("sum", 1.0)], [side, main]) is None
    assert products_of([layer("side", 1.0)], [side, main]) is None


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "pytorch"])
def test_each_product_of_a_graph_has_its_layer(built: Store, name: str) -> None:
    need_engine(name)
    engine = engines.get(name)
    feeds = {"image": np.zeros((2, 1, 28, 28), np.uint8)}
    path = built.root / f"lenet/fp32/{name}/engine{engine.suffix}"
    layers = engine.layer_times(path, OpenOptions(), feeds, 1)
    work = work_of(onnx.load(built.root / "lenet/fp32/model.onnx"), {"image": (2, 1, 28, 28)})
    known = products_of(layers, work.products)
    assert known is not None
    # In the order of the network: two convolutions, of which the first has padding, then three
    # matrices.
    macs = [6 * (28 * 5 - 6) ** 2, 240_000, 48_000, 10_080, 840]
    assert [known[i].operations for i in sorted(known)] == [2 * 2 * count for count in macs]
