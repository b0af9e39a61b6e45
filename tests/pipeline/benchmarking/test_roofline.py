"""What an engine reaches of what the machine attains."""

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from engines.contract import BuildOptions, OpenOptions
from exporters import product_graph
from exporters.onnx_work import work_of
from exporters.work import Work
from pipeline.benchmarking import roofline
from pipeline.benchmarking.comparison import Load
from pipeline.benchmarking.intervals import Interval
from pipeline.benchmarking.roofline import Ceilings, Product, ProductTime
from pipeline.benchmarking.transfers import Transfer
from tests.conftest import need_engine
from tests.timed import timed


def product(precision: str, engine: str = "a", kind: str = "matrix product") -> Product:
    return Product(precision, kind, 1000, Path(), engine)


def exactly(seconds: float) -> Interval:
    return Interval(seconds, seconds, seconds)


def test_computation_bounds_at_a_high_intensity() -> None:
    work = Work({"fp32": 4000}, 50, 30, 20)
    seconds = {"": Interval(10.0, 9.0, 12.0), "fp32 matrix product by a": exactly(1.0)}
    seconds |= {"copy": exactly(1.0), "read": exactly(2.0)}
    moved = {"copy": 100, "read": 100}
    reached = roofline._roofline(work, seconds, [product("fp32")], moved)
    # 4 s at 1000 operations/s, and 1 s at 100 bytes/s.
    assert (reached.peak, reached.bandwidth, reached.bandwidth_by) == (1000, 100, "copy")
    assert (reached.intensity, reached.bound, reached.attainable) == (40, "computation", 1000)
    assert reached.reached == 400
    assert reached.share == Interval(0.4, 4 / 12, 4 / 9)


def test_memory_bounds_at_a_low_intensity() -> None:
    work = Work({"fp32": 500}, 1000, 0, 0)
    seconds = {"": exactly(10.0), "fp32 matrix product by a": exactly(1.0)}
    seconds |= {"copy": exactly(1.0), "read": exactly(0.5)}
    reached = roofline._roofline(work, seconds, [product("fp32")], {"copy": 100, "read": 100})
    assert (reached.bound, reached.bandwidth_by, reached.bandwidth) == ("memory", "read", 200)
    assert reached.attainable == 100  # intensity of 0.5, times 200 bytes/s
    assert reached.share.value == 0.5


def test_the_times_of_several_types_are_added_and_the_fastest_product_counts() -> None:
    work = Work({"int8": 3000, "fp32": 1000}, 1, 0, 0)
    slow, fast, other = product("int8", "a"), product("int8", "b"), product("fp32")
    seconds = {slow.name: exactly(2.0), fast.name: exactly(0.5), other.name: exactly(1.0)}
    seconds |= {"": exactly(5.0), "copy": exactly(1.0), "read": exactly(1.0)}
    reached = roofline._roofline(work, seconds, [slow, fast, other], {"copy": 9, "read": 9})
    assert reached.share.value == (3 * 0.5 + 1.0) / 5
    assert reached.peak_by == (fast.name, other.name)


def test_the_fastest_product_of_each_engine_is_chosen() -> None:
    kinds = {"matrix product": 2.0, "convolution": 1.0}
    times = [ProductTime(product("fp32", "a", kind), seconds) for kind, seconds in kinds.items()]
    times += [ProductTime(product("fp32", "b"), 3.0), ProductTime(product("int8", "c"), 9.0)]
    far = ProductTime(product("fp32", "c"), 5.0)
    assert roofline.fastest([*times, far]) == times[1:]


@timed
def test_products_run_at_least_once_and_no_longer_than_the_budget() -> None:
    with closing(Transfer(1 << 20, 1, write=False)) as read:
        (once,) = roofline._medians([read], 0.0)
        assert once > 0
        start = time.perf_counter()
        first, second = roofline._medians([read, read], 0.2)
        assert 0.2 <= time.perf_counter() - start < 0.2 + 20 * (first + second)


def test_there_is_no_share_without_products_or_a_peak_or_if_not_all_are_counted() -> None:
    with Ceilings((), 1) as ceilings:
        assert "no convolution" in ceilings.missing(Work({}, 1, 1, 1))
        uncounted = Work({"fp64": 1}, 1, 1, 1, uncounted=("com.microsoft.FusedConv",))
        assert ceilings.missing(uncounted).endswith("not counted: com.microsoft.FusedConv")
        assert "products in fp64" in ceilings.missing(Work({"fp64": 1}, 1, 1, 1))


@pytest.mark.slow(9)
def test_a_large_product_reaches_what_is_attainable(tmp_path: Path) -> None:
    for name in ("onnxruntime", "openvino"):
        need_engine(name)
    graphs: list[Product] = []
    for kind, model in product_graph.products("fp32").items():
        path = tmp_path / f"{len(graphs)}.onnx"
        onnx.save(model, path)
        operations = sum(work_of(model, {}).operations.values())
        graphs.append(Product("fp32", kind, operations, path))
    times = []
    for name in ("onnxruntime", "openvino"):
        timed, problems = roofline.time_products(name, graphs, tmp_path, 1, 0.3)
        assert not problems
        times += timed
    best = roofline.fastest(times)
    # The same number of operations as other matrices: 1 product of twice as many rows.
    rows = np.ones((2048, 512), np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, rows.shape)],
            [onnx.helper.make_tensor_value_info("y", 1, rows.shape)],
            [onnx.numpy_helper.from_array(np.eye(512, dtype=np.float32), "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "one.onnx")
    shares = []
    for name in ("onnxruntime", "openvino"):
        engine = engines.get(name)
        built = tmp_path / f"one{engine.suffix}"
        engine.build(tmp_path / "one.onnx", built, BuildOptions())
        with (
            closing(engine.open(built, OpenOptions(threads=1))) as session,
            Ceilings(best, 1) as ceilings,
        ):
            load, work = Load(1, {"x": rows}), work_of(model, {})
            _, reached = ceilings.measure(
                session, load, work, seconds=3 * best[0].seconds, budget=0.5, seed=0
            )
            assert reached.bound == "computation"
            shares.append(reached.share)
    best_share = max(shares, key=lambda share: share.value)
    # What other processes do to some of the rounds makes the interval wider.
    assert best_share.low < 1.05
    assert best_share.high > 0.9
    assert 0.7 < best_share.value < 1.2
