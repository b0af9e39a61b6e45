"""What an export costs: assay's beside PyTorch's exporter alone, in time and memory.

Both run in fresh processes, in turns. `assay export`, on a model with new weights and no data set,
also runs the model in float64, measures its rounding noise and judges the graph; the other process
imports torch, makes the model and calls `torch.onnx.export`. Each ratio is of one turn.

    PYTHONPATH=. python benchmarks/export.py [--turns N] > benchmarks/results/export.md
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines import hardware

# The zoo's LeNet has a data set; as a module of a user's own it has none.
OWN = """
import numpy as np
from assay import Model
from pipeline.models.zoo.lenet import lenet

def model():
    return Model(network=lenet(), inputs={"image": np.ones((2, 1, 28, 28), np.float32)})
"""
EXPORTER = """
import sys, torch
name, target = sys.argv[1:]
if name == "LeNet":
    from pipeline.models.zoo.lenet import lenet
    model, shape = lenet().eval(), (2, 1, 28, 28)
else:
    import torchvision
    model, shape = torchvision.models.get_model(name).eval(), (2, 3, 224, 224)
torch.set_num_threads(1)
images = (torch.zeros(shape),)
torch.onnx.export(model, images, target, dynamic_shapes=({0: "batch"},), verbose=False)
"""
# What assay calls each model.
MODELS = {
    "LeNet": "own.py:model",
    "resnet18": "torchvision:resnet18",
    "resnet50": "torchvision:resnet50",
}


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        wall: Seconds until its end.
        cpu: Seconds of all its CPUs.
        mib: The largest memory that it held.
    """

    wall: float
    cpu: float
    mib: float


def cost(words: Sequence[str], folder: Path) -> Cost:
    """Runs Python with arguments in a folder; raises CalledProcessError if it fails."""
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, words, log.read().decode())
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def turn(name: str, folder: Path) -> tuple[Cost, Cost]:
    """Returns what PyTorch's exporter and assay's export took, one after the other."""
    alone = cost(["-c", EXPORTER, name, str(folder / "alone.onnx")], folder)
    shutil.rmtree(folder / "artifacts/.reference", ignore_errors=True)
    whole = cost(["-m", "pipeline.cli", "export", MODELS[name], "--force"], folder)
    return alone, whole


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Returns the median, and in brackets the least and the largest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    load = os.getloadavg()[0]
    rows = []
    for name, argument in MODELS.items():
        with tempfile.TemporaryDirectory(prefix="assay-") as path:
            folder = Path(path)
            (folder / "own.py").write_text(OWN)
            cost(["-m", "pipeline.cli", "train", argument], folder)
            alone, whole = zip(*(turn(name, folder) for _ in range(turns)), strict=True)
        cells = [name]
        for part in ("wall", "cpu"):
            ours, theirs = ([getattr(entry, part) for entry in side] for side in (whole, alone))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            cells += [spread(theirs), spread(ours), spread(ratios, 2)]
        memory = [statistics.median(entry.mib for entry in side) for side in (alone, whole)]
        rows.append([*cells, *(f"{value:,.0f}" for value in memory)])
    print("# What an export costs\n")
    print(
        f"`python benchmarks/export.py --turns {turns}`: torch {hardware.version('torch')},"
        f" {hardware.cpu_model()}, {hardware.available_cpus()} CPUs, load average {load:.1f} before"
        f" and {os.getloadavg()[0]:.1f} after. Whole processes, imports included: median"
        f" and range of {turns} turns; a ratio is of one turn. Memory is the peak of the process.\n"
    )
    head = ["model"]
    for unit in ("s", "CPU s"):
        head += [f"exporter alone, {unit}", f"`assay export`, {unit}", "ratio"]
    head += ["exporter, MiB", "`assay export`, MiB"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
