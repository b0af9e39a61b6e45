"""The sizes of an ONNX graph's golden inputs."""

import pytest

from engines.contract import TensorSpec
from engines.errors import UsageError
from pipeline.golden import graph_rows


def test_the_sizes_of_all_inputs_are_asked_for_at_once() -> None:
    specs = [
        TensorSpec("image", "float32", (None, 3, None, None)),
        TensorSpec("scale", "float32", (None, 2)),
        TensorSpec("mask", "float32", (None, 1, None, 8)),
    ]
    with pytest.raises(UsageError) as caught:
        graph_rows.rows(specs, {}, None, batched=True)
    assert "--shape image=1x3xSIZExSIZE,mask=1x1xSIZEx8," in caught.value.hint
    known = graph_rows.parse(["image=1x3x8x8"])
    with pytest.raises(UsageError, match=r"^input mask: .* has axes") as caught:
        graph_rows.rows(specs, known, None, batched=True)
    assert "image" not in caught.value.hint
