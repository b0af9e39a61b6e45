"""Whether the field's own tools measure what `assay bench` does, on the same graphs in one run.

    PYTHONPATH=. python benchmarks/agreement.py [--models A,B] [--rounds 7] [--root FOLDER]
        > benchmarks/results/agreement.md

In each round every tool measures once, in random order, for about a second:

- assay: both boundaries, by `pipeline.benchmarking.clock`;
- torch.utils.benchmark: `blocked_autorange` of `run` and of `launch` of the same session;
- ONNX Runtime: its own profile of `model_run`, in a session with the same settings;
- Polygraphy: `OnnxrtRunner` on the same ONNX Runtime session, if it is installed;
- OpenVINO: `benchmark_app -api sync` on the same graph with the same settings.

The ratio of a tool's time to ours is taken within each round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engines
from benchmarks.roofline import markdown, proved
from engines import hardware
from engines.contract import Feeds, OpenOptions, Session
from pipeline.benchmarking import clock
from pipeline.golden import file as goldens
from pipeline.report.units import duration

SECONDS = 1.0
ENGINES = ("onnxruntime", "openvino", "pytorch")
DEVICE, WHOLE = clock.BOUNDARIES
Measure = Callable[[], float]


def ours(session: Session, feeds: Feeds) -> dict[str, float]:
    """Returns the seconds of an inference by boundary, as assay measures them."""
    timings = clock.measure([clock.Candidate("", session, feeds)], budget=SECONDS, seed=0)
    return {entry.boundary: entry.seconds.value for entry in timings}


def with_torch(action: Callable[[], object], threads: int) -> float:
    """Returns the median seconds of a call by PyTorch's benchmark utilities."""
    from torch.utils.benchmark import Timer

    # Without a number it sets PyTorch's threads to one.
    timer = Timer("action()", globals={"action": action}, num_threads=threads)
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)


def by_profile(path: Path, feeds: Feeds, threads: int, folder: Path) -> float:
    """Returns the median seconds of ONNX Runtime's own profile, with the settings of its engine."""
    import onnxruntime

    from engines.backends import _onnxruntime

    options = _onnxruntime._settings(onnxruntime, OpenOptions("cpu", threads))
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text())
    times = [event["dur"] for event in events if event["name"] == "model_run"]
    return float(statistics.median(times) / 1e6)


def with_polygraphy(session: Any, feeds: Feeds) -> float:
    """Returns the median seconds that Polygraphy's runner reports for ONNX Runtime's session."""
    from polygraphy.backend.onnxrt import OnnxrtRunner

    times: list[float] = []
    with OnnxrtRunner(session) as runner:
        while sum(times) < SECONDS:
            runner.infer(dict(feeds))
            times.append(runner.last_inference_time())
    return statistics.median(times)


def with_benchmark_app(graph: Path, feeds: Feeds, threads: int, folder: Path) -> float:
    """Returns the median seconds that OpenVINO's benchmark_app reports."""
    settings = folder / "settings.json"
    settings.write_text(
        json.dumps({"CPU": {"EXECUTION_MODE_HINT": "ACCURACY", "ENABLE_CPU_PINNING": "NO"}})
    )
    shapes = ",".join(f"{name}{[*array.shape]}".replace(" ", "") for name, array in feeds.items())
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(graph), "-d", "CPU"]
    command += ["-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-api", "sync"]
    command += ["-t", f"{SECONDS:g}", "-data_shape", shapes, "-inference_only"]
    command += ["-load_config", str(settings)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    match = re.search(r"Median:\s+([0-9.]+) ([um])s", printed)
    if match is None:
        sys.exit(printed)
    return float(match[1]) / {"m": 1e3, "u": 1e6}[match[2]]


def compared(model: str, root: Path, batch: int, threads: int, rounds: int) -> list[list[str]]:
    """Returns a row for each tool: how its time relates to ours."""
    _, passed = proved(model, "fp32", root, ENGINES)
    (folder,) = root.glob(f"benchmarks.roofline-{model.replace('-', '_')}/fp32")
    feeds = goldens.load(folder / "golden.npz").feeds(batch)
    order = random.Random(0)  # noqa: S311 - no secret
    rows: list[list[str]] = []
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in passed:
            engine = engines.get(name)
            path = next((folder / name).glob("engine.*"))
            session = engine.open(path, OpenOptions("cpu", threads))
            stack.enter_context(contextlib.closing(session))
            tools = _tools(name, session, feeds, path, folder, threads, scratch)
            times: dict[str, list[float]] = {}
            for _ in range(rounds):
                for tool in order.sample([*tools, ""], len(tools) + 1):
                    if tool:
                        times.setdefault(tool, []).append(tools[tool][1]())
                    else:
                        for boundary, seconds in ours(session, feeds).items():
                            times.setdefault(boundary, []).append(seconds)
            for tool, (boundary, _) in tools.items():
                ratios = [a / b for a, b in zip(times[tool], times[boundary], strict=True)]
                low, *_, high = sorted(ratios)
                rows.append(
                    [
                        *(model, f"{batch}", name, tool, boundary),
                        duration(statistics.median(times[boundary])),
                        duration(statistics.median(times[tool])),
                        f"{statistics.median(ratios):.3f}",
                        f"{low:.3f} to {high:.3f}",
                    ]
                )
            print(model, batch, name, file=sys.stderr)
    return rows


def _tools(
    name: str,
    session: Any,
    feeds: Feeds,
    path: Path,
    folder: Path,
    threads: int,
    scratch: Path,
) -> dict[str, tuple[str, Measure]]:
    """Returns the tools for an engine, each with the boundary that it measures at."""

    def launch() -> None:
        session.launch()
        session.synchronize()

    def launches() -> float:
        session.bind(feeds)
        return with_torch(launch, threads)

    tools: dict[str, tuple[str, Measure]] = {
        "torch.utils.benchmark of run": (
            WHOLE,
            lambda: with_torch(lambda: session.run(feeds), threads),
        ),
        "torch.utils.benchmark of launch": (DEVICE, launches),
    }
    if name == "onnxruntime":
        tools["ONNX Runtime's profile"] = (
            DEVICE,
            lambda: by_profile(path, feeds, threads, scratch),
        )
        with contextlib.suppress(ImportError):
            import polygraphy  # noqa: F401

            tools["Polygraphy"] = (WHOLE, lambda: with_polygraphy(session._session, feeds))
    if name == "openvino":
        tools["benchmark_app"] = (
            DEVICE,
            lambda: with_benchmark_app(folder / "model.onnx", feeds, threads, scratch),
        )
    return tools


def main() -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=["lenet", "resnet18"]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=hardware.available_cpus())
    parser.add_argument("--root", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = asked.root or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        rows = [
            row
            for model in asked.models
            for batch in (1, 8)
            for row in compared(model, root, batch, asked.threads, asked.rounds)
        ]
    words = " ".join(["python benchmarks/agreement.py", *sys.argv[1:]])
    print(
        f"`{words}` on {hardware.cpu_model()}, {asked.threads} threads of"
        f" {hardware.available_cpus()} CPUs.\n"
    )
    columns = ["model", ">batch", "engine", "tool", "beside ours", ">ours", ">theirs"]
    columns += [">theirs / ours", "range over the rounds"]
    print(markdown("", columns, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
