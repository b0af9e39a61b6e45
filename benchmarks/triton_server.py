"""Throughput through a real Triton server beside the same engine in this process.

    PYTHONPATH=. ASSAY_TRITON_VENV=FOLDER python benchmarks/triton_server.py [--models A,B]
        [--batch 1,8,64] [--seconds 3] > benchmarks/results/triton.md

`make triton-test` makes the environment of the server. Weights are random, since speed does not
depend on them. The server's ONNX Runtime backend is that of the tests (`tests/servers`), in Python;
both sides use one CPU thread for an inference. Rounds of both alternate: the figures are medians of
rounds, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import engines
from benchmarks.roofline import MODELS, markdown, proved
from engines import hardware
from engines.contract import OpenOptions
from pipeline.cli.main import main as assay
from pipeline.golden import file as goldens
from pipeline.serving.client import Client, Server
from tests import servers

ROUNDS = 9


def rate(run: Callable[[], object], seconds: float) -> float:
    """Returns the calls per second."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        run()
        count += 1
    return count / spent


def measure(model: str, batches: list[int], seconds: float, root: Path) -> list[list[str]]:
    """Returns a row for each batch size of a model."""
    words, passed = proved(model, "fp32", root, ["onnxruntime"])
    if not passed:
        sys.exit(f"{model}: onnxruntime is not proved")
    repository, log = root / "repository", root / "server"
    log.mkdir()
    if assay(["triton", words[0], str(repository), "--root", str(root), "--quiet"]):
        sys.exit(f"{model}: no repository")
    (name,) = (path.parent.name for path in repository.glob("*/config.pbtxt"))
    (golden_path,) = root.glob("**/golden.npz")
    (built,) = root.glob("**/engine.onnx")
    golden = goldens.load(golden_path)
    outputs = tuple(golden.native)
    rows = []
    with (
        servers.triton(repository, log) as server,
        closing(engines.get("onnxruntime").open(built, OpenOptions(threads=1))) as session,
        closing(Client(Server(server.http))) as http,
        closing(Client(Server(server.grpc))) as grpc,
    ):
        for batch in batches:
            feeds = golden.feeds(batch)
            sides: dict[str, Callable[[], object]] = {
                "here": lambda feeds=feeds: session.run(feeds),  # type: ignore[misc]
                "http": lambda feeds=feeds: http.infer(name, "", feeds, outputs),  # type: ignore[misc]
                "grpc": lambda feeds=feeds: grpc.infer(name, "", feeds, outputs),  # type: ignore[misc]
            }
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(ROUNDS + 1):  # the first round warms up
                for side, run in sides.items():
                    measured = rate(run, seconds / ROUNDS)
                    if number:
                        rates[side].append(measured * batch)
            row = [model, str(batch), f"{statistics.median(rates['here']):,.0f}"]
            for side in ("http", "grpc"):
                parts = [a / b for a, b in zip(rates[side], rates["here"], strict=True)]
                row += [
                    f"{statistics.median(rates[side]):,.0f}",
                    f"{statistics.median(parts):.0%}",
                ]
            rows.append(row)
    return rows


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS)
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each side and batch")
    asked = parser.parse_args()
    rows = []
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            batches = asked.batch or [1, 8, 64]
            rows += measure(model, batches, asked.seconds, Path(folder).resolve())
    cpu = hardware.cpu_fingerprint()
    print("# Throughput through Triton\n")
    print(
        f"`benchmarks/triton_server.py` on {', '.join(f'{key} {cpu[key]}' for key in cpu)}. Rows per"
    )
    print("second with one client, fp32, ONNX Runtime with one thread on both sides.\n")
    columns = ["model", ">batch", ">in process", ">HTTP", ">of it", ">gRPC", ">of it"]
    print(markdown("", columns, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
