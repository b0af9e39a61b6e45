"""The small real data set and the trained weights that tests use instead of the full ones.

`python -m tests.subset ARGS` is `assay ARGS` with them.
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
FOLDER = ROOT / "tests" / "data" / "fashion-mnist-subset"
TRAINED = ROOT / "tests" / "data" / "lenet"


def python_path(*first: Path) -> str:
    """Returns the PYTHONPATH of a child process: `first`, this checkout, then what is there.

    On some machines the libraries themselves are there.
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
    """Publishes weights of the full recipe as what the train stage made."""

    def copy(_inputs: Paths, outputs: Paths, _params: train.Params) -> None:
        for artifact in (CHECKPOINT, TRAINING):
            shutil.copyfile(TRAINED / outputs[artifact].name, outputs[artifact])

    run(dataclasses.replace(train.STAGE, run=copy), train.Params(model="lenet"), store)


def pause(name: str) -> None:
    """Makes a stage wait between its work and its publishing, to be interrupted there."""
    module = importlib.import_module(f"pipeline.stages.{name}")
    work = module.STAGE.run

    def run_and_wait(inputs: Paths, outputs: Paths, params: object) -> None:
        work(inputs, outputs, params)
        console.say("pausing")
        # In short steps: a signal that arrives just before a sleep is seen only after it.
        for _ in range(1000):
            time.sleep(0.1)

    module.STAGE = dataclasses.replace(module.STAGE, run=run_and_wait)


def hurry() -> None:
    """Makes benchmarks short that were not told how long to take."""
    from pipeline.stages import bench

    def resolve(params: bench.Params) -> bench.Params:
        return bench.resolve(dataclasses.replace(params, budget=params.budget or 0.5))

    bench.STAGE = dataclasses.replace(bench.STAGE, resolve=resolve)


# They compile for a minute a model: `make test-engines` runs the tests with them.
if not os.environ.get("ASSAY_TEST_COMPILERS"):
    _COMPILERS = {"aot_inductor", "torch_compile"}

    def _without_compilers(path: Iterable[str]) -> list[pkgutil.ModuleInfo]:
        return [module for module in pkgutil.iter_modules(path) if module.name not in _COMPILERS]

    engines.pkgutil = SimpleNamespace(iter_modules=_without_compilers)


def stages(*, data: bool = True) -> int:
    """Returns how many stages a whole run has here: of each engine, it builds and verifies one."""
    built = sum(engines.get(name).available().build for name in engines.names())
    return 5 + data + 2 * built


if __name__ == "__main__":
    registry.DATASETS["fashion-mnist"] = SUBSET
    if "ASSAY_TEST_PAUSE" in os.environ:
        pause(os.environ["ASSAY_TEST_PAUSE"])
    hurry()
    sys.exit(main.main())
