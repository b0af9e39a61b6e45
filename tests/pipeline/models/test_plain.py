"""Models that a user may well write: they are proved, or refused with the right reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.golden import file as goldens
from tests.conftest import Result
from tests.plain_models import SOURCE

Assay = Callable[..., Result]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)


def named(factory: str) -> str:
    return f"plain.py:{factory}"


def artifact(factory: str, precision: str, name: str) -> Path:
    return Path("artifacts") / f"plain.py-{factory}" / precision / name


def proved(assay: Assay, factory: str, precision: str) -> dict[str, Any]:
    """Exports and verifies a model, and returns the description of its graph."""
    words = (named(factory), "--precision", precision)
    exported = assay("export", *words)
    assert exported.code == 0, exported.err
    verified = assay("verify", *words)
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
