"""Training speed in images/s, compared with the notebook's way of training the same model.

    python benchmarks/training.py [MODEL …]

The notebook's way: torchvision's data set, each image resized and converted by Pillow in one of
four DataLoader workers, the network in torch's default layout. All ways train the same network
with the same batch size and number of threads, in turn, so that drift of the machine affects all.
Each runs in a process of its own, since settings of the process (such as how it keeps freed
memory) are part of it. Compiling takes half a minute, in the first round, which does not count.
The workers start again in every epoch, so their start counts; LeNet is measured over whole epochs,
where it matters little.

Prints a JSON document. Needs the data set: run `assay data` first.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from engines import hardware
from pipeline import models
from pipeline.benchmarking import intervals
from pipeline.data import download, registry
from pipeline.training import loop
from pipeline.training.settings import Samples, Settings, seed

ROUNDS = 9
WORKERS = 4
# Images per round: a few seconds each way on two cores.
IMAGES = {"lenet": 60_000, "vgg11-slim": 128 * 2, "resnet18": 128 * 4}


def unpack(folder: Path) -> None:
    """Writes the data set to the folder where torchvision expects it."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in download.fetch(registry.FASHION_MNIST, None).items():
        (raw / name).write_bytes(content)


@cache
def images_of(folder: Path) -> FashionMNIST:
    """Returns the training images as the notebook loads them."""
    return FashionMNIST(folder, train=True, download=False)


def notebook(name: str, folder: Path, threads: int) -> float:
    """Trains the notebook's way and returns images/s."""
    dataset = images_of(folder)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)  # as the notebook leaves it
    spec = models.get(name)
    torch.manual_seed(0)
    network = spec.build(None).network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=spec.recipe.lr)
    dataset.transform = transforms.Compose(
        [transforms.Resize((spec.image_shape or ())[1:]), transforms.ToTensor()]
    )
    part = Subset(dataset, range(IMAGES[name]))
    start = time.perf_counter()
    loader = DataLoader(
        part,
        spec.recipe.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="fork",  # as in a notebook; the default here would be spawn
    )
    for images, labels in loader:
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return IMAGES[name] / (time.perf_counter() - start)


def ours(name: str, folder: Path, threads: int, *, compiled: bool = False) -> float:
    """Trains an epoch as `assay train` does, or with `--compile`, and returns images/s."""
    dataset = images_of(folder)
    recipe = models.get(name).recipe
    settings = Settings(
        epochs=1,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        seed=0,
        threads=threads,
        device="cpu",
        compile=compiled,
    )
    seed(settings)
    model = models.get(name).build(None)
    count = IMAGES[name]
    part = Samples(dataset.data[:count, None], dataset.targets[:count])
    return loop.train(model.network, model.prepare, part, settings)[0]["images_per_second"]


def measure(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """Measures all ways in turn; returns speeds and their ratios to the notebook's."""
    ways: dict[str, Callable[[str, Path, int], float]] = {
        "notebook": notebook,
        "assay": ours,
        "assay --compile": partial(ours, compiled=True),
    }
    context = multiprocessing.get_context("spawn")
    pools = {way: ProcessPoolExecutor(1, mp_context=context) for way in ways}
    rounds = []
    for number in range(ROUNDS + 1):
        rounds.append(
            [pools[way].submit(run, name, folder, threads).result() for way, run in ways.items()]
        )
        print(f"{name}, round {number}: {[round(speed) for speed in rounds[-1]]}", file=sys.stderr)
    for pool in pools.values():
        pool.shutdown()
    speeds = dict(zip(ways, np.array(rounds[1:]).T, strict=True))  # the first warms up
    measured: dict[str, Any] = {"model": name, "images_a_round": IMAGES[name], "rounds": ROUNDS}
    for way, speed in speeds.items():
        ratio = intervals.location(speed / speeds["notebook"])
        measured[way] = {
            "images_per_second": round(float(np.median(speed)), 1),
            "ratio": {key: round(value, 2) for key, value in vars(ratio).items()},
        }
    return measured


def main() -> None:
    """Measures the models named on the command line, or all of them."""
    names = sys.argv[1:] or list(IMAGES)
    threads = hardware.available_cpus()
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        results = [measure(name, Path(folder), threads) for name in names]
    facts = {"torch": torch.__version__, "cpu": hardware.cpu_model(), "threads": threads}
    print(json.dumps({**facts, "workers": WORKERS, "results": results}, indent=2))


if __name__ == "__main__":
    main()
