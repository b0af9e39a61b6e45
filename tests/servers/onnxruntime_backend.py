"""A Python-based backend that serves ONNX graphs, in place of Triton's own, which no wheel has."""

import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph of the version that is to be served."""
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.slow = Path(os.environ.get("ASSAY_TEST_SLOW", ""))  # a file with seconds
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests: list) -> list:
        """Runs all requests of a dynamic batch at once."""
        parts = [
            [utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        outputs = self.session.run(self.outputs, dict(zip(self.inputs, joined, strict=True)))
        if self.slow.is_file():
            time.sleep(float(self.slow.read_text()))
        ends = np.cumsum([len(arrays[0]) for arrays in parts])[:-1]
        split = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            utils.InferenceResponse(
                [utils.Tensor(*pair) for pair in zip(self.outputs, arrays, strict=True)]
            )
            for arrays in split
        ]
