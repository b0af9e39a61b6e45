"""Models that a user may well write: they are proved, or refused with the right reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters import PRECISIONS
from pipeline import models
from pipeline.golden import file as goldens
from tests.conftest import Result
from tests.plain_models import SOURCE

Assay = Callable[..., Result]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_SPECS", {})  # as in a new process


def named(factory: str) -> str:
    return f"plain.py:{factory}"


def artifact(factory: str, precision: str, name: str) -> Path:
    return Path("artifacts") / f"plain.py-{factory}" / precision / name


def at(precision: str) -> tuple[str, ...]:
    """Returns the options of a precision, for a model without data."""
    quantized = PRECISIONS[precision].quantized
    return ("--precision", precision, *(["--calibrate-on-noise"] if quantized else []))


def proved(assay: Assay, factory: str, precision: str) -> dict[str, Any]:
    """Exports and verifies a model, and returns the description of its graph."""
    exported = assay("export", named(factory), *at(precision))
    assert exported.code == 0, exported.err
    verified = assay("verify", named(factory), "--precision", precision)
    assert verified.code == 0, verified.err + verified.out
    description: dict[str, Any] = json.loads(artifact(factory, precision, "graph.json").read_text())
    return description


@pytest.mark.slow(2)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_complex_buffers_keep_their_imaginary_part(assay: Assay, precision: str) -> None:
    proved(assay, "rotary", precision)
    golden = goldens.load(artifact("rotary", precision, "golden.npz"))
    row = golden.cases.index("nothing")
    for outputs in (golden.reference["output"], golden.native["output"]):
        # On zeros the layer gives its bias in each position, and a rotation keeps its length.
        lengths = np.linalg.norm(outputs[row].reshape(6, 4, 2), axis=-1)
        assert np.allclose(lengths, lengths[0], rtol=0.02)


@pytest.mark.slow(9)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("factory", ["attention", "causal", "filled"])
def test_masked_attention_is_quantized(assay: Assay, factory: str, precision: str) -> None:
    calibration = proved(assay, factory, precision)["calibration"]
    assert calibration["failed"] == {}
    if precision == "int8":
        reasons = calibration["in_float"].values()
        assert "adds a mask or bias to the scores of a softmax" in reasons


@pytest.mark.slow(3)
def test_transposed_convolutions_in_groups_stay_in_float(assay: Assay) -> None:
    kept = proved(assay, "transposed", "int8")["calibration"]["in_float"]
    assert list(kept.values()) == ["is a transposed convolution in groups"]


@pytest.mark.slow(2)
def test_a_constant_output_among_others_has_to_match(assay: Assay) -> None:
    proved(assay, "constant", "fp32")
    name = named("constant")
    assert "constant matches, but is the same for every input" in assay("verify", name).out
    model = onnx.load(artifact("constant", "fp32", "model.onnx"))
    (three,) = [t for t in model.graph.initializer if (numpy_helper.to_array(t) == 3).all()]
    three.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(three) + 1, three.name))
    onnx.save(model, "four.onnx")
    result = assay("verify", name, "--file", "four.onnx")
    assert result.code == 3
    assert "constant: rms error is" in result.err


@pytest.mark.slow(1)
def test_overflow_on_every_row_is_not_called_rounding(assay: Assay) -> None:
    assert assay("export", named("huge")).code == 0
    result = assay("verify", named("huge"))
    assert result.code == 3
    assert "output overflows in fp32 on every input" in result.err
    assert "rounding" not in result.err + result.out


def test_a_complex_output_is_refused(assay: Assay) -> None:
    result = assay("export", named("complex_output"))
    assert result.code == 1
    assert "output 'output' is complex" in result.err


@pytest.mark.slow(4)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_query_without_keys_gets_zero(assay: Assay, precision: str) -> None:
    description = proved(assay, "masked", precision)
    assert description["translated"] == "with attention written out"
    golden = goldens.load(artifact("masked", precision, "golden.npz"))
    assert not golden.reference["output"][1].any()


@pytest.mark.slow(3)
def test_attention_of_three_axes_is_translated(assay: Assay) -> None:
    assert proved(assay, "masked_3d", "fp32")["translated"] == "with attention written out"


@pytest.mark.slow(2)
def test_a_usual_translation_is_not_replaced(assay: Assay) -> None:
    assert "translated" not in proved(assay, "causal", "fp32")


@pytest.mark.slow(2)
def test_scores_that_overflow_keep_attention_in_float32(assay: Assay) -> None:
    proved(assay, "sharp", "fp16")
    model = onnx.load(artifact("sharp", "fp16", "model.onnx"))
    kept = {entry.key: entry.value for entry in model.metadata_props}["assay.kept_in_fp32"]
    assert "scaled_dot_product_attention" in kept


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    ("precision", "opset"), [("bf16", None), ("fp32", 22), ("int8", 22), ("fp8", 22)]
)
def test_group_norms_keep_their_type(assay: Assay, precision: str, opset: int | None) -> None:
    words = () if opset is None else ("--opset", opset)
    result = assay("export", named("grouped"), *at(precision), *words)
    assert result.code == 0, result.err
    assert assay("verify", named("grouped"), "--precision", precision).code == 0
    operators = json.loads(artifact("grouped", precision, "graph.json").read_text())["operators"]
    assert operators["GroupNormalization"] == 2


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("factory", "precision", "words"),
    [
        ("half", "fp32", "its weights are float16: converted to float32, with the same values"),
        ("half", "fp16", "its weights are float16"),
        ("bfloat16", "fp32", "its weights are bfloat16"),
        ("double", "fp32", "its weights are float64: converted to float32, rounded"),
    ],
)
def test_networks_of_other_types_are_exported_in_float32(
    assay: Assay, factory: str, precision: str, words: str
) -> None:
    result = assay("export", named(factory), *at(precision))
    assert result.code == 0, result.err
    assert result.err.count(words) == 1
    assert assay("verify", named(factory), "--precision", precision).code == 0
    golden = goldens.load(artifact(factory, precision, "golden.npz"))
    assert [spec.dtype for spec in golden.input_specs] == ["float32"]
    model = onnx.load(artifact(factory, precision, "model.onnx"))
    (tensor,) = [t for t in model.graph.initializer if t.name.endswith("network.3.weight")]
    weights = numpy_helper.to_array(tensor)
    assert weights.dtype == (np.float16 if precision == "fp16" else np.float32)
    if factory == "half":
        assert np.array_equal(weights, weights.astype(np.float16))


@pytest.mark.slow(2)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_may_change_its_inputs_and_an_unread_buffer(assay: Assay, precision: str) -> None:
    proved(assay, "in_place", precision)
    golden = goldens.load(artifact("in_place", precision, "golden.npz"))
    assert not golden.inputs["x"][golden.cases.index("nothing")].any()
    proved(assay, "unread", precision)


@pytest.mark.slow(1)
@pytest.mark.filterwarnings("ignore")  # of torch, about TorchScript and its quantization
@pytest.mark.parametrize(
    ("factory", "words", "messages"),
    [
        (
            "zeros",
            ("--precision", "fp16"),
            (
                "linear gets float32 as well, at plain.py:",
                "that comes from zeros, at plain.py:",
                "start = torch.zeros(x.shape[0], 8)",
                "torch.zeros(..., dtype=x.dtype)",
            ),
        ),
        (
            "table",
            ("--precision", "bf16"),
            ("matmul gets float32", "network.table, which is no buffer"),
        ),
        ("cast_to_float", ("--precision", "fp16"), ("linear gets float32", "y.to(x.dtype)")),
        (
            "fill",
            ("--precision", "fp16", "--exporter", "torchscript"),
            ("cannot hold: masked_fill", "at plain.py:", "leave --exporter out"),
        ),
        (
            "half_inside",
            (),
            ("in forward: return self.linear(x.half())", "casts to a fixed type"),
        ),
        ("counter", (), ("each run changes count of the network", "an input and an output")),
        ("counter", ("--precision", "fp16"), ("each run changes count of the network",)),
        ("steps", (), ("each run changes steps of the network",)),
        ("normed", (), ("each run changes parameters of the network: table.weight", "max_norm")),
        ("packed", (), ("it packs sequences", "at plain.py:", "padded sequences")),
        ("same_name", (), ("an output is named 'x', like an input", "assay.Model(outputs=")),
        ("twice", (), ("an output is named 'y', like another output",)),
        ("torchscript", (), ("its part is a RecursiveScriptModule", "return the nn.Module")),
        ("quantized_twice", (), ("its 0 is a Linear", "quantized", "--precision int8")),
        ("exported", (), ("it is a program of torch.export", "return the nn.Module")),
        ("lazy", (), ("weight has no values yet",)),
        (
            "overflow",
            (),
            (
                "overflows in fp32 on",
                "mul gives it first, at plain.py:",
                "return big * big / 1e30",
                "scale the model's values down",
            ),
        ),
        (
            "pixels",
            ("--precision", "fp16"),
            ("tensors of different types meet, at plain.py:", "cast integers to the type of a"),
        ),
        ("spectrum", ("--precision", "bf16"), ("in a half type", "call x.float() before it")),
        ("causal_encoder", (), ("to see if it is causal", "pass is_causal=False with the mask")),
        (
            "padded",
            (),
            ("depends on the other rows", "(layers) enable_nested_tensor=False"),
        ),
        ("unmasked", (), ("output 'output' is NaN on", "as on example 1:", "at plain.py:")),
    ],
)
def test_a_model_is_refused_with_the_right_reason(
    assay: Assay, factory: str, words: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    result = assay("export", named(factory), *words)
    assert result.code == 1, result.err
    for message in messages:
        assert message in result.err
    assert "bug" not in result.err
    assert not list(Path().rglob("*.onnx"))


CALIBRATIONS = {
    ("--precision", "int8"): "int8 needs usual inputs to calibrate on",
    ("--precision", "fp8"): "--calibrate-on-noise takes generated ones",
    ("--max-drop", "3"): "--max-drop is for int8 and fp8, not for fp32",
    ("--calibrate-on-noise",): "does not apply: fp32 is not calibrated",
    ("--precision", "int8", "--calibrate-on-noise", "--calibration", "rows.npz"): (
        "does not apply: there are real inputs"
    ),
}


@pytest.mark.parametrize("words", CALIBRATIONS)
def test_generated_inputs_calibrate_only_on_request(assay: Assay, words: tuple[str, ...]) -> None:
    np.savez("rows.npz", x=np.ones((4, 8), np.float32))
    result = assay("export", named("causal"), *words)
    assert result.code == 2
    assert CALIBRATIONS[words] in result.err


@pytest.mark.slow(3)
def test_a_quantized_verdict_without_classes_says_that_accuracy_is_unknown(assay: Assay) -> None:
    proved(assay, "causal", "int8")
    result = assay("verify", named("causal"), "--precision", "int8")
    assert "graph in int8: the verdict tells nothing about accuracy" in result.out
    proved(assay, "causal", "fp32")
    assert "accuracy" not in assay("verify", named("causal")).out.replace("accuracy lost", "")
