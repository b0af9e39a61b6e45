"""The small real data set and the trained weights that tests use instead of the full ones.

`python -m tests.subset ARGS` is `assay ARGS` with them.
"""

import dataclasses
import gzip
import hashlib
import shutil
import sys
from pathlib import Path

from pipeline import cli, data
from pipeline.artifacts import CHECKPOINT, TRAINING, Paths
from pipeline.runner import Store, run
from pipeline.stages import train

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "data" / "fashion-mnist-subset"
TRAINED = ROOT / "tests" / "data" / "lenet"


def _described(file: data.DataFile) -> data.DataFile:
    packed = (FOLDER / f"{file.name}.gz").read_bytes()
    sha256 = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    return data.DataFile(file.name, sha256, hashlib.md5(packed).hexdigest())  # noqa: S324


FULL = data.DATASETS["fashion-mnist"]
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


if __name__ == "__main__":
    data.DATASETS["fashion-mnist"] = SUBSET
    sys.exit(cli.main())
