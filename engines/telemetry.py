"""Keeps the libraries of others from reporting to their makers how they are used."""

from __future__ import annotations

import os
import sys

# ONNX Runtime (from 1.29 on, for Linux too), Hugging Face's hub, MLflow, and whoever honours
# DO_NOT_TRACK, which MLflow does not with this value.
_VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# OpenVINO reports each import through this package, and works without it. It has no variable
# against that, only a file in the home folder.
_REPORTER = "openvino_telemetry"


def disable() -> None:
    """Disables that in this process and its children, for libraries that are not yet imported."""
    os.environ.update(_VARIABLES)
    # An import of it fails then.
    sys.modules.setdefault(_REPORTER, None)  # type: ignore[arg-type]
