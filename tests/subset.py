"""A subset of Fashion-MNIST and trained weights, which tests use instead of the full data set.

`python -m tests.subset ARGS` runs `assay ARGS` with them.
"""

import dataclasses
import gzip
import hashlib
import importlib
import os
import pkgutil
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import engines
from pipeline.cli import main
from pipeline.data import registry
from pipeline.stages import train
from pipeline.workflow import console
from pipeline.workflow.artifacts import CHECKPOINT, TRAINING, Paths
from pipeline.workflow.runner import Store, run

ROOT = Path(__file__).parent.parent
# Engines that fail in many ways, and the file by which child processes find them.
FAULTY = ROOT / "tests" / "faulty_engines"
FOLDER = ROOT / "tests" / "data" / "fashion-mnist-subset"
TRAINED = ROOT / "tests" / "data" / "lenet"


def python_path(*first: Path) -> str:
    """Returns the PYTHONPATH of a child process: `first`, this checkout, then the inherited one.

    On some machines, the inherited one has the installed libraries.
    """
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(filter(None, [*map(str, first), str(ROOT), *inherited]))


def _described(file: registry.DataFile) -> registry.DataFile:
    packed = (FOLDER / f"{file.name}.gz").read_bytes()
    sha256 = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    return registry.DataFile(file.name, sha256, hashlib.md5(packed).hexdigest())  # noqa: S324


FULL = registry.DATASETS["fashion-mnist"]
SUBSET = dataclasses.replace(
    FULL,
    files=tuple(map(_described, FULL.files)),
    mirrors=(),
    debian_folder=FOLDER,
)


def install_trained(store: Store) -> None:
    """Publishes weights of the full recipe as outputs of the train stage."""

    def copy(_inputs: Paths, outputs: Paths, _params: train.Params) -> None:
        for artifact in (CHECKPOINT, TRAINING):
            shutil.copyfile(TRAINED / outputs[artifact].name, outputs[artifact])

    run(dataclasses.replace(train.STAGE, run=copy), train.Params(model="lenet"), store)


def pause(name: str) -> None:
    """Makes a stage wait after its work and before it publishes, so that it can be interrupted."""
    module = importlib.import_module(f"pipeline.stages.{name}")
    work = module.STAGE.run

    def run_and_wait(inputs: Paths, outputs: Paths, params: object) -> None:
        work(inputs, outputs, params)
        console.say("pausing")
        # In short steps: a signal that arrives just before a sleep is handled only after it.
        for _ in range(1000):
            time.sleep(0.1)

    module.STAGE = dataclasses.replace(module.STAGE, run=run_and_wait)


def shorten_benchmarks() -> None:
    """Makes benchmarks short that have no `--budget`."""
    from pipeline.stages import bench

    def resolve(params: bench.Params) -> bench.Params:
        return bench.resolve(dataclasses.replace(params, budget=params.budget or 0.5))

    bench.STAGE = dataclasses.replace(bench.STAGE, resolve=resolve)


# They compile for a minute per model, so only `make test-engines` includes them.
if not os.environ.get("ASSAY_TEST_COMPILERS"):
    _COMPILERS = {"aot_inductor", "torch_compile"}

    def _without_compilers(path: Iterable[str]) -> list[pkgutil.ModuleInfo]:
        return [module for module in pkgutil.iter_modules(path) if module.name not in _COMPILERS]

    engines.pkgutil = SimpleNamespace(iter_modules=_without_compilers)


def stages(*, data: bool = True) -> int:
    """Returns how many stages a whole run has here: it builds and verifies each engine."""
    built = sum(engines.get(name).available().build for name in engines.names())
    return 5 + data + 2 * built


if __name__ == "__main__":
    registry.DATASETS["fashion-mnist"] = SUBSET
    if "ASSAY_TEST_PAUSE" in os.environ:
        pause(os.environ["ASSAY_TEST_PAUSE"])
    shorten_benchmarks()
    sys.exit(main.main())
