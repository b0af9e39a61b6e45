"""The time of the full verdict on LeNet, against evaluating its test set twice in PyTorch.

    assay export lenet           (after training it)
    python benchmarks/verdict.py [--root artifacts]

The verdict is that of `assay verify lenet`: it opens the graph, runs golden rows at four batch
sizes, classifies all test images and audits the weights. PyTorch runs the module eagerly on the
same images, in batches of 1000, twice. Both run in turn, on one thread.

Prints a JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from engines import hardware
from exporters.module import Served
from pipeline import models
from pipeline.benchmarking import intervals
from pipeline.data import idx
from pipeline.golden import file as goldens
from pipeline.training.weights import load
from pipeline.verification import engine_proof

ROUNDS = 9
BATCH, THREADS = 1000, 1


def main() -> None:
    """Measures both in turn and prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, default=Path("artifacts"))
    root = parser.parse_args().root
    folder = root / "lenet/fp32"
    images = idx.read_images(root / "data/fashion-mnist/test-images.idx")
    if len(goldens.load(folder / "golden.npz").test_labels) != len(images):
        raise SystemExit("the golden file has a part of the test set; train without --test-limit")
    model = models.get("lenet").build(None)
    load(model.network, root / "lenet/checkpoint.safetensors", "lenet")
    served = Served(model.network, model.prepare).eval()

    def verdict() -> None:
        outcome = engine_proof.prove_here(
            "graph",
            folder / "model.onnx",
            folder / "golden.npz",
            "fp32",
            device="auto",
            threads=THREADS,
            images=lambda: images,
        )
        if outcome.status != "pass":
            raise SystemExit(f"the graph does not pass: {outcome.reason}")

    def eager() -> None:
        torch.set_num_threads(THREADS)
        with torch.inference_mode():
            for _ in range(2):
                for batch in torch.from_numpy(images).split(BATCH):  # type: ignore[no-untyped-call]
                    served(batch)

    rounds = []
    for _ in range(ROUNDS + 1):
        seconds = []
        for run in (verdict, eager):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        rounds.append(seconds)
    verdicts, eagers = np.array(rounds[1:]).T  # the first warms up
    ratio = intervals.location(verdicts / eagers)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "cpu": hardware.cpu_model(),
                "threads": THREADS,
                "images": len(images),
                "verdict_seconds": round(float(np.median(verdicts)), 3),
                "twice_eager_seconds": round(float(np.median(eagers)), 3),
                "ratio": {k: round(v, 2) for k, v in vars(ratio).items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
