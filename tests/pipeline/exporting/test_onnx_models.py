"""An ONNX file as the model, from its export to its bundle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import assay as library
from pipeline.golden import file as goldens
from tests import foreign
from tests.conftest import Result, need_engine

ENGINES = ("--engine", "onnxruntime", "--engine", "openvino")
QUICK = ("--budget", "0.05", "--batch", "1")
SIZES = "images=1x3x16:24:40x16:32:40"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def detector() -> Path:
    return foreign.detector(Path("det.onnx"))


@pytest.mark.slow(20)
def test_a_graph_of_any_size_goes_through_the_whole_chain(
    assay: Callable[..., Result], detector: Path
) -> None:
    engine = ("--engine", "onnxruntime")
    ran = assay("run", "onnx:det.onnx", "--shape", SIZES, *engine, *QUICK)
    assert ran.code == 0, ran.err
    folder = Path("artifacts/onnx-det.onnx/fp32")
    golden = goldens.load(folder / "golden.npz")
    assert golden.batched
    assert [part.size for part in (golden, *golden.others)] == ["3x24x32", "3x16x16", "3x40x40"]
    assert [str(spec) for spec in golden.input_specs] == ["images: float32[batch, 3, ?, ?]"]
    # The nodes and weights are the user's.
    original, exported = onnx.load(detector), onnx.load(folder / "model.onnx")
    assert exported.graph.node == original.graph.node
    assert exported.graph.initializer == original.graph.initializer
    measured = assay("report", "onnx:det.onnx", "--json")
    assert '"size": "3x40x40"' in measured.out
    checked = assay("check", "dist/onnx-det.onnx-fp32.tar.zst", "--trust")
    assert checked.code == 0, checked.err
    with library.load("dist/onnx-det.onnx-fp32.tar.zst") as model:
        assert model.predict(np.zeros((2, 3, 20, 36), np.float32)).shape == (2, 5, 10, 18)
        with pytest.raises(library.DeployError, match=r"size 44 on axis 3.*for 16 to 40 only"):
            model.predict(np.zeros((2, 3, 20, 44), np.float32))
    again = assay("run", "onnx:det.onnx", "--shape", SIZES, *engine, *QUICK)
    assert "6 stages, 6 skipped" in again.err


@pytest.mark.slow(20)
@pytest.mark.parametrize(
    "precision",
    ["fp16", "int8", *(pytest.param(n, marks=pytest.mark.long) for n in ("bf16", "fp8"))],
)
@pytest.mark.usefixtures("detector")
def test_other_precisions_are_made_from_it(assay: Callable[..., Result], precision: str) -> None:
    noise = ("--calibrate-on-noise",) if precision in ("int8", "fp8") else ()
    words = ("onnx:det.onnx", "--precision", precision)
    exported = assay("export", *words, "--shape", "images=1x3x24x32", *noise)
    assert exported.code == 0, exported.err
    judged = assay("verify", *words)
    assert judged.code == 0, judged.err
    assert "pass" in judged.out
    graph = onnx.load(Path("artifacts/onnx-det.onnx") / precision / "model.onnx")
    kinds = {tensor.data_type for tensor in graph.graph.initializer}
    wanted = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8", "fp8": "FLOAT8E4M3FN"}
    assert onnx.TensorProto.DataType.Value(wanted[precision]) in kinds


@pytest.mark.usefixtures("detector")
def test_a_graph_in_a_half_type_is_judged_in_it(assay: Callable[..., Result]) -> None:
    words = ("--precision", "fp16", "--shape", "images=1x3x24x32")
    assert assay("export", "onnx:det.onnx", *words).code == 0
    Path("artifacts/onnx-det.onnx/fp16/model.onnx").rename("half.onnx")
    failed = assay("export", "onnx:half.onnx", "--shape", "images=1x3x24x32")
    assert failed.code == 2
    assert "give --precision fp16" in failed.err
    assert assay("export", "onnx:half.onnx", *words).code == 0
    judged = assay("verify", "onnx:half.onnx", "--precision", "fp16")
    assert judged.code == 0, judged.err
    original = onnx.load("half.onnx").graph.node
    assert onnx.load("artifacts/onnx-half.onnx/fp16/model.onnx").graph.node == original


def test_a_graph_without_a_batch_axis_is_run_once_a_row(assay: Callable[..., Result]) -> None:
    foreign.recurrent(Path("step.onnx"))
    rows = {"sound": np.ones((1, 16), np.float32), "state": np.zeros((1, 1, 8), np.float32)}
    np.savez("rows.npz", **rows, rate=np.array(16000))
    exported = assay("export", "onnx:step.onnx", "--inputs", "rows.npz")
    assert exported.code == 0, exported.err
    golden = goldens.load(Path("artifacts/onnx-step.onnx/fp32/golden.npz"))
    assert not golden.batched
    assert golden.inputs["state"].shape[1:] == (1, 1, 8)
    assert set(golden.inputs["rate"].tolist()) == {16000}  # generated rows keep to the example
    words = ("--precision", "int8", "--calibrate-on-noise", "--inputs", "rows.npz")
    failed = assay("export", "onnx:step.onnx", *words)
    assert failed.code == 1
    assert "takes no batches of rows" in failed.err
    assert assay("build", "onnx:step.onnx", *ENGINES).code == 0
    judged = assay("verify", "onnx:step.onnx", *ENGINES)
    assert judged.code == 0, judged.err
    measured = assay("bench", "onnx:step.onnx", "--budget", "0.05")
    assert measured.code == 0, measured.err


def one_node(kind: str, shape: list[int | str], opset: int = 18, **attributes: int) -> None:
    """Writes one.onnx, a graph of one node."""
    node = helper.make_node(kind, ["x"] * (1 + (kind == "Mul")), ["y"], **attributes)
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy")
    graph = helper.make_graph([node], "graph", [x], [y])
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=7), "one.onnx")


def test_a_graph_of_a_number_is_judged(assay: Callable[..., Result]) -> None:
    one_node("Mul", [])
    ran = assay("run", "onnx:one.onnx", "--engine", "onnxruntime", *QUICK)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_an_old_softmax_is_judged_by_its_own_noise(assay: Callable[..., Result], kind: str) -> None:
    one_node(kind, ["b", 3, 4], 11, axis=1)
    assert assay("export", "onnx:one.onnx").code == 0
    judged = assay("verify", "onnx:one.onnx")
    assert judged.code == 0, judged.err


def test_a_row_that_depends_on_others_is_no_batch(assay: Callable[..., Result]) -> None:
    foreign.across_batch(Path("mean.onnx"))
    exported = assay("export", "onnx:mean.onnx", "--shape", "x=4x6")
    assert exported.code == 0
    assert "a row depends on others" in exported.err
    assert not goldens.load(Path("artifacts/onnx-mean.onnx/fp32/golden.npz")).batched
    assert assay("verify", "onnx:mean.onnx").code == 0


def test_a_changed_weight_is_a_mismatch(assay: Callable[..., Result], detector: Path) -> None:
    changed = onnx.load(detector)
    weight = next(t for t in changed.graph.initializer if t.name == "w2")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 1e-3
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))
    onnx.save(changed, "other.onnx")
    words = ("--shape", SIZES)
    shaped = assay("diff", "det.onnx", "det.onnx", "--shape", "images=1x3x8x8", "--shape", "x=1")
    assert "has no input 'x'" in shaped.err  # both options are read
    same = assay("diff", "det.onnx", "det.onnx", *words)
    assert same.code == 0, same.err
    assert "5 of 5" in same.out
    differs = assay("diff", "det.onnx", "other.onnx", *words)
    assert differs.code == 3
    assert "other.onnx is not proved equal" in differs.err


def test_a_fault_at_another_size_is_found(assay: Callable[..., Result], detector: Path) -> None:
    """A graph that cuts off what it was not exported with is right at that size alone."""
    cut = onnx.load(detector)
    head = next(node for node in cut.graph.node if node.name == "head")
    head.output[0] = "all"
    bounds = {"starts": [0, 0], "ends": [12, 16], "axes": [2, 3]}
    for name, values in bounds.items():
        cut.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    cut.graph.node.append(helper.make_node("Slice", ["all", *bounds], ["boxes"], "cut"))
    onnx.save(cut, "cut.onnx")
    assert assay("diff", "det.onnx", "cut.onnx", "--shape", "images=1x3x24x32").code == 0
    judged = assay("diff", "det.onnx", "cut.onnx", "--shape", SIZES)
    assert judged.code == 3
    assert "boxes at 3x40x40: gives float32" in judged.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "onnx:det.onnx"), "--shape images=1x3xSIZExSIZE"),
        (("export", "onnx:det.onnx", "--shape", "image=1x3x8x8"), "did you mean 'images'"),
        (("export", "onnx:det.onnx", "--shape", "images=1x4x8x8"), "does not fit images"),
        (("export", "onnx:det.onnx", "--shape", "images=1x3x8"), "does not fit images"),
        (("export", "onnx:det.onnx", "--shape", "images=1x3x9:8:7x8"), "axis 2 of images is 9:8:7"),
        (("export", "onnx:det.onnx", "--shape", "images=axb"), "LEAST:USUAL:LARGEST"),
        (("export", "onnx:det.onnx", "--opset", "20"), "--opset does not apply to an ONNX file"),
        (("export", "onnx:none.onnx"), "none.onnx does not exist"),
        (("export", "det.onnx"), "an ONNX file is named onnx:det.onnx"),
        (("train", "onnx:det.onnx", "--data", "fashion-mnist"), "is an ONNX graph"),
        (("summary", "onnx:det.onnx"), "is an ONNX graph"),
        (("export", "lenet", "--shape", "image=1x1x28x28"), "--shape is for an ONNX file"),
        (("export", "onnx:det.onnx", "--precision", "int8"), "--calibration FILE.npz"),
    ],
)
@pytest.mark.usefixtures("detector")
def test_wrong_usage_is_explained(
    assay: Callable[..., Result], words: tuple[str, ...], message: str
) -> None:
    failed = assay(*words)
    assert failed.code == 2
    assert message in failed.err


@pytest.mark.usefixtures("detector")
def test_sizes_that_are_not_given_again_are_kept(assay: Callable[..., Result]) -> None:
    assert assay("export", "onnx:det.onnx", "--shape", SIZES).code == 0
    again = assay("export", "onnx:det.onnx")
    assert again.code == 0, again.err
    assert "nothing changed" in again.err
    assert assay("export", "onnx:det.onnx", "--precision", "fp16").code == 0
    half = goldens.load(Path("artifacts/onnx-det.onnx/fp16/golden.npz"))
    assert [part.size for part in (half, *half.others)] == ["3x24x32", "3x16x16", "3x40x40"]


def test_an_index_out_of_range_is_the_reason_that_is_named(assay: Callable[..., Result]) -> None:
    foreign.save(
        Path("table.onnx"),
        [helper.make_node("Gather", ["table", "ids"], ["rows"], "lookup")],
        {"ids": (onnx.TensorProto.INT64, ["batch", 4])},
        {"rows": ["batch", 4, 3]},
        {"table": np.ones((50, 3), np.float32)},
    )
    np.savez("ids.npz", ids=np.full((4, 4), 99))
    failed = assay("export", "onnx:table.onnx", "--inputs", "ids.npz")
    assert failed.code == 1
    assert "at Gather lookup: index 99 is out of bounds" in failed.err
    assert "depends on others" not in failed.err


@pytest.mark.usefixtures("detector")
def test_engines_of_pytorch_programs_do_not_apply(assay: Callable[..., Result]) -> None:
    assert assay("export", "onnx:det.onnx", "--shape", "images=1x3x24x32").code == 0
    failed = assay("build", "onnx:det.onnx", "--engine", "pytorch")
    assert failed.code == 4
    assert "runs a PyTorch program, and onnx:det.onnx is an ONNX graph" in failed.err


@pytest.mark.usefixtures("detector")
def test_bisection_needs_a_pytorch_model(assay: Callable[..., Result]) -> None:
    failed = assay("verify", "onnx:det.onnx", "--bisect")
    assert failed.code == 2
    assert "`assay reduce det.onnx`" in failed.err


def test_the_wrong_shape_of_an_output_is_corrected(assay: Callable[..., Result]) -> None:
    wrong = onnx.load(foreign.detector(Path("wrong.onnx")))
    del wrong.graph.output[0].type.tensor_type.shape.dim[2:]
    Path("wrong.onnx").write_bytes(wrong.SerializeToString())
    exported = assay("export", "onnx:wrong.onnx", "--shape", "images=1x3x24x32")
    assert exported.code == 0, exported.err
    assert "the graph declares boxes: float32[batch, 5], but gives" in exported.err
    assert assay("verify", "onnx:wrong.onnx").code == 0


@pytest.mark.usefixtures("detector")
def test_a_plan_has_the_sizes_of_the_shape(assay: Callable[..., Result]) -> None:
    need_engine("tensorrt_rtx", run=False)
    assert assay("export", "onnx:det.onnx", "--shape", SIZES).code == 0
    built = assay("build", "onnx:det.onnx", "--engine", "tensorrt_rtx", "--batch-opt", "1")
    assert built.code == 0, built.err
    plan = Path("artifacts/onnx-det.onnx/fp32/tensorrt_rtx/engine.plan")
    assert plan.stat().st_size > 0


@pytest.mark.usefixtures("detector")
def test_axes_of_one_name_may_have_several_sizes(assay: Callable[..., Result]) -> None:
    model = onnx.load("det.onnx")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_param = "?"
    onnx.save(model, "named.onnx")
    exported = assay("export", "onnx:named.onnx", "--shape", "images=1x3x24x32")
    assert exported.code == 0, exported.err
    need_engine("tensorrt_rtx", run=False)
    built = assay("build", "onnx:named.onnx", "--engine", "tensorrt_rtx")
    assert built.code == 0, built.err


def test_inspect_names_the_axes(assay: Callable[..., Result], detector: Path) -> None:
    shown = assay("inspect", detector)
    assert "images: float32[batch, 3, height, width]" in shown.out
    assert "multiply-adds a row: not known" in shown.out


_LINE = {"w": np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)}


@pytest.mark.parametrize("stored", [True, False])
def test_half_types_inside_a_graph_in_fp32_are_its_rounding(
    assay: Callable[..., Result], *, stored: bool
) -> None:
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    names = ("w", "w") if stored else ("x", "x")
    nodes = [
        helper.make_node("Cast", [names[0]], ["half"], to=half),
        helper.make_node("Cast", ["half"], ["wide"], to=single),
        helper.make_node("MatMul", ["x", "wide"] if stored else ["wide", "w"], ["y"]),
    ]
    weights = {"w": _LINE["w"].astype(np.float16)} if stored else _LINE
    nodes = nodes[1:] if stored else nodes
    if stored:
        nodes[0].input[0] = "w"
    foreign.save(Path("g.onnx"), nodes, {"x": (single, ["n", 8])}, {"y": ["n", 4]}, weights)
    exported = assay("export", "onnx:g.onnx")
    assert exported.code == 0, exported.err
    assert assay("build", "onnx:g.onnx", "--engine", "onnxruntime").code == 0
    judged = assay("verify", "onnx:g.onnx", "--engine", "onnxruntime")
    assert judged.code == 0, judged.err


def _product(axes: list[int | str]) -> onnx.ModelProto:
    """Returns a graph of one product, whose output has no shape."""
    single = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a,b", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a,b", single, axes)],
        [helper.make_tensor_value_info("y", single, None)],
        [numpy_helper.from_array(_LINE["w"], "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_outputs_may_have_no_shape_and_names_a_comma(assay: Callable[..., Result]) -> None:
    onnx.save(_product(["n", "m", 8]), "g.onnx")
    exported = assay("export", "onnx:g.onnx", "--shape", "a,b=1x3x8")
    assert exported.code == 0, exported.err
    golden = goldens.load(Path("artifacts/onnx-g.onnx/fp32/golden.npz"))
    assert golden.batched
    assert golden.reference["y"].shape[1:] == (3, 4)


def test_an_input_that_holds_nothing_is_refused(assay: Callable[..., Result]) -> None:
    onnx.save(_product([0, 3, 8]), "g.onnx")
    failed = assay("export", "onnx:g.onnx")
    assert failed.code == 1
    assert "holds nothing" in failed.err


def test_constants_listed_as_inputs_are_no_inputs_of_other_precisions(
    assay: Callable[..., Result],
) -> None:
    model = _product(["n", 8])
    single = onnx.TensorProto.FLOAT
    model.graph.input.append(helper.make_tensor_value_info("w", single, [8, 4]))
    onnx.save(model, "g.onnx")
    exported = assay("export", "onnx:g.onnx", "--precision", "fp16")
    assert exported.code == 0, exported.err
    graph = onnx.load("artifacts/onnx-g.onnx/fp16/model.onnx").graph
    assert [value.name for value in graph.input] == ["a,b"]
