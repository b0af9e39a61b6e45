"""The graphs that show how fast a machine multiplies."""

import numpy as np
import onnx
import onnxruntime
import pytest

from exporters.onnx_describe import describe
from exporters.onnx_work import work_of
from exporters.product_graph import INPUT, products


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_all_products_compute_in_the_precision(precision: str) -> None:
    for kind, model in products(precision).items():
        onnx.checker.check_model(model, full_check=True)
        assert work_of(model, {}).operations.keys() == {precision}, kind
        operators = describe(model).operators
        assert {"matrix product": "MatMul", "convolution": "Conv"}[kind] in operators


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_values_of_products_stay_ordinary(precision: str) -> None:
    # Infinities and denormal numbers would take another time.
    for kind, model in products(precision).items():
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (spec,) = session.get_inputs()
        dtype = np.uint8 if precision == "int8" else np.float32
        rows = np.random.default_rng(0).integers(1, 3, spec.shape).astype(dtype)
        (outputs,) = session.run(None, {INPUT: rows})
        assert np.isfinite(outputs).all(), kind
        assert outputs.std() > 0.1, kind
