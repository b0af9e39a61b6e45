"""assay as a library: the stages as functions with typed results, and inference from bundles."""

# Nothing is printed: functions return results, send progress to the caller's function, and raise
# DeployError with a message and a hint. Large libraries are imported when they are needed.

from assay._predictor import Predictor, load
from assay._results import Bench, Build, Bundle, Check, Export, Run, Training, Verification
from assay._stages import bench, build, bundle, check, data, export, run, train, verify
from engines.errors import (
    CrashedError,
    DeployError,
    FailedError,
    NotAvailableError,
    ParityError,
    RefusedError,
    UsageError,
)
from pipeline import __version__
from pipeline.models import Model, Recipe

__all__ = [
    "Bench",
    "Build",
    "Bundle",
    "Check",
    "CrashedError",
    "DeployError",
    "Export",
    "FailedError",
    "Model",
    "NotAvailableError",
    "ParityError",
    "Predictor",
    "Recipe",
    "RefusedError",
    "Run",
    "Training",
    "UsageError",
    "Verification",
    "__version__",
    "bench",
    "build",
    "bundle",
    "check",
    "data",
    "export",
    "load",
    "run",
    "train",
    "verify",
]
