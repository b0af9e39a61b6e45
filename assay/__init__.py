"""assay as a library: the stages as functions with typed results, and inference from bundles."""

# Nothing is printed: functions return results, send progress to the caller's function, and raise
# DeployError with a message and a hint. Large libraries are imported when they are needed.

from assay._bundles import check, check_server
from assay._decisions import choose
from assay._predictor import Predictor, load
from assay._results import (
    Bench,
    Build,
    Bundle,
    Check,
    Choice,
    Export,
    Run,
    ServerCheck,
    Sweep,
    Training,
    Verification,
)
from assay._stages import bench, build, bundle, data, export, run, sweep, train, verify
from engines.errors import (
    CrashedError,
    DeployError,
    FailedError,
    NotAvailableError,
    NotMetError,
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
    "Choice",
    "CrashedError",
    "DeployError",
    "Export",
    "FailedError",
    "Model",
    "NotAvailableError",
    "NotMetError",
    "ParityError",
    "Predictor",
    "Recipe",
    "RefusedError",
    "Run",
    "ServerCheck",
    "Sweep",
    "Training",
    "UsageError",
    "Verification",
    "__version__",
    "bench",
    "build",
    "bundle",
    "check",
    "check_server",
    "choose",
    "data",
    "export",
    "load",
    "run",
    "sweep",
    "train",
    "verify",
]
