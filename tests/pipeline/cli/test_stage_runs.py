"""The engines that a command runs a stage for."""

from collections.abc import Callable

import pytest

from tests.conftest import Result, need_engine

Assay = Callable[..., Result]


@pytest.mark.slow(2)
def test_engine_all_leaves_out_engines_without_an_operator(
    own: Callable[[str], str], assay: Assay
) -> None:
    need_engine("openvino")
    name = own("determinant")
    result = assay("run", name, "--batch", "1", "--budget", "0.1")
    assert result.code == 0, result.err
    assert "build: without openvino: OpenVINO does not accept" in result.err
    assert "(Det)" in result.err
    assert "onnxruntime" in result.out
    result = assay("build", name, "--engine", "openvino")
    assert result.code == 1
