"""What native code prints during an export goes to the report, not to the terminal."""

import os

import pytest
import torch
from torch import nn

from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters import native_output
from exporters.onnx_graph import trace_graph


def test_both_outputs_of_the_process_are_captured(capfd: pytest.CaptureFixture[str]) -> None:
    with native_output.captured() as written:
        os.write(1, b"to stdout\n")
        os.write(2, b"to stderr\n")
        text = written()
    os.write(1, b"after")
    assert text == "to stdout\nto stderr\n"
    assert capfd.readouterr() == ("after", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about TorchScript
def test_torchscript_does_not_print_its_graph(capfd: pytest.CaptureFixture[str]) -> None:
    inputs = tuple(TensorSpec(name, "float32", (None, 4)) for name in ("x", "y"))
    outputs = (TensorSpec("z", "float32", (None, 2)),)
    module, examples = nn.Bilinear(4, 4, 2).eval(), [torch.ones(2, 4), torch.ones(2, 4)]
    with pytest.raises(DeployError) as error:
        trace_graph(module, examples, inputs, outputs, {})
    assert capfd.readouterr() == ("", "")
    assert "Torch IR graph" in error.value.report
