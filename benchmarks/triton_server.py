"""Throughput through a real Triton server beside the same engine in this process.

    PYTHONPATH=. ASSAY_TRITON_VENV=FOLDER python benchmarks/triton_server.py [--models A,B]
        [--batch 1,8] [--seconds 3] > benchmarks/results/triton.md

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import engines
from benchmarks.gpu_report import GOLDEN
from benchmarks.roofline import MODELS, call, markdown, proved
from engines import hardware
from engines.contract import Feeds, OpenOptions
from pipeline.golden import file as goldens
from pipeline.serving.client import Client, Server
from tests import servers

ROUNDS = 9
CLIENTS = 2  # while one waits for its reply, the server computes for the other


def rate(run: Callable[[], object], seconds: float) -> float:
    """Returns the calls per second."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        run()
        count += 1
    return count / spent


def rate_over_wire(url: str, name: str, feeds: Feeds, output: str, seconds: float) -> float:
    """Returns the requests per second of `CLIENTS` clients, each with one request at a time."""

    def ask(_number: int) -> float:
        with closing(Client(Server(url))) as client:

            def run() -> object:
                return client.infer(name, "", feeds, (output,))

            run()  # connects
            return rate(run, seconds)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask, range(CLIENTS)))


def measure(model: str, batches: list[int], seconds: float, root: Path) -> list[list[str]]:
    """Returns a row for each batch size of a model."""
    words, passed = proved(model, "fp32", root, ["onnxruntime"], max([GOLDEN, *batches]))
    repository, log = root / "repository", root / "server"
    log.mkdir()
    written = call(["triton", words[0], str(repository), "--root", str(root)])
    if not passed or "error" in written:
        sys.exit(f"{model}: onnxruntime is not proved")
    (name,) = written["models"]
    (golden_path,) = root.glob("**/golden.npz")
    (built,) = root.glob("**/engine.onnx")
    golden = goldens.load(golden_path)
    (output,) = golden.native
    rows = []
    with (
        servers.triton(repository, log) as server,
        closing(engines.get("onnxruntime").open(built, OpenOptions(threads=1))) as session,
    ):
        for batch in batches or sorted({1, 8, len(golden.cases)}):
            feeds = golden.feeds(batch)
            rates: dict[str, list[float]] = {"here": [], "http": [], "grpc": []}
            for number in range(ROUNDS + 1):  # the first round warms up
                measured = {
                    "here": rate(partial(session.run, feeds), seconds / ROUNDS),
                    "http": rate_over_wire(server.http, name, feeds, output, seconds / ROUNDS),
                    "grpc": rate_over_wire(server.grpc, name, feeds, output, seconds / ROUNDS),
                }
                if number:
                    for side, calls in measured.items():
                        rates[side].append(calls * batch)
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
            rows += measure(model, asked.batch or [], asked.seconds, Path(folder).resolve())
    cpu = hardware.cpu_fingerprint()
    print("# Throughput through Triton\n")
    print(f"`benchmarks/triton_server.py` on {', '.join(f'{key} {cpu[key]}' for key in cpu)}.")
    print("Rows per second, fp32, two clients, ONNX Runtime with one thread on both sides.\n")
    columns = ["model", ">batch", ">in process", ">HTTP", ">of it", ">gRPC", ">of it"]
    print(markdown("", columns, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
