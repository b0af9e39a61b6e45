"""Speed of LeNet, ResNet18 and VGG-11 on a machine's GPU, with every engine that runs there.

    PYTHONPATH=. python benchmarks/gpu_report.py [--seconds 600] [--models A,B] [--precisions A,B]
                                                 [--batch 1,8,64,256] [--output FOLDER]

Needs torch and the dependencies of `assay`; measures every other engine that is installed. Weights
are random and images generated, so that nothing has to be downloaded: speed and parity do not
depend on training. Each case runs `assay export`, `build`, `verify` and `bench`. Several cases are
exported, built and verified in parallel, which also compiles everything once; then each is measured
alone. The report also gives the part of the card's copy bandwidth and matrix rate that each time
reaches, which torch measures in the same run. On a machine without a GPU, it measures the CPU.

Writes report-NAME.json and report-NAME.md after every case, so that results are kept when the time
is up.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import engines
from engines import cache, hardware
from engines.contract import OpenOptions
from pipeline import models
from pipeline.golden import rows

MODELS = ("lenet", "resnet18", "vgg11")
PRECISIONS = ("fp32", "fp16", "int8")
RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
GOLDEN, CALIBRATION = 8, 32  # images
SLOW = ("torch_compile", "aot_inductor")
_CPUS = 4  # for each of the cases that are prepared in parallel
_PREPARING = 0.5  # the part of the time that export, build and verify may take
WARM_UP = 3  # calls that do not count
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def factory(name: str) -> Callable[[], models.Model]:
    """Returns a function that makes a model of the zoo with random weights."""

    def make() -> models.Model:
        torch.manual_seed(0)
        built = models.get(name).build(None)
        network = built.network.train()
        with torch.no_grad():  # fills the statistics of batch norms
            assert built.image is not None  # noqa: S101 - the zoo's
            images = torch.from_numpy(rows.made_images(built.image, 8, seed=2))
            network(images if built.prepare is None else built.prepare(images))
        return dataclasses.replace(built, network=network.eval(), dataset=None)

    return make


lenet, resnet18, vgg11 = map(factory, MODELS)


def seconds_of(action: Callable[[], object], device: str) -> float:
    """Returns the shortest time of an action in seconds, until the device has finished it."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    times = []
    for _ in range(WARM_UP + 10):
        wait()
        start = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[WARM_UP:])


def peaks(device: str) -> dict[str, float]:
    """Measures the device: "copy" in bytes/s read and written, matrix products in flop/s."""
    on_gpu = device != "cpu"
    source = torch.ones(2**28 if on_gpu else 2**25, device=device)
    target = torch.empty_like(source)
    rates = {"copy": 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)}
    torch.backends.cuda.matmul.allow_tf32 = False
    size = 8192 if on_gpu else 2048
    # In other types, torch's matrix products on a CPU are far from what it can do.
    kinds = {"fp32": torch.float32, **({"fp16": torch.float16} if on_gpu else {})}
    for name, kind in kinds.items():
        matrix = torch.ones(size, size, dtype=kind, device=device)
        rates[name] = 2 * size**3 / seconds_of(partial(torch.matmul, matrix, matrix), device)
    if on_gpu:
        whole = torch.ones(size, size, dtype=torch.int8, device=device)
        # cuBLAS has fast kernels only for a column-major second operand.
        rates["int8"] = 2 * size**3 / seconds_of(lambda: torch._int_mm(whole, whole.t()), device)
    return rates


def work(name: str) -> dict[str, float]:
    """Returns a model's operations per row, parameters, and input and output bytes per row."""
    model = globals()[name]()
    images = torch.from_numpy(rows.made_images(model.image, 1, seed=1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = model.network(model.prepare(images))
    return {
        "flop": counter.get_total_flops(),
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "bytes": images.nbytes + outputs.nbytes,
    }


def _call(words: list[str]) -> str:
    """Runs a command in this process; returns what it prints on stdout."""
    from pipeline.cli.main import main as assay

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assay([*words, "--json"])
    return out.getvalue()


def _cold(name: str, path: str, device: str, inputs: str) -> str:
    """Opens an engine and runs one row; returns the seconds of each, as JSON.

    The compilers' caches on the disk are already filled.
    """
    images = {key: array[:1] for key, array in np.load(inputs).items()}
    options = OpenOptions(device=device, threads=hardware.available_cpus())
    start = time.perf_counter()
    session = engines.get(name).open(Path(path), options)
    opened = time.perf_counter()
    session.run(images)
    ran = time.perf_counter()
    session.close()
    return json.dumps({"open": opened - start, "first_run": ran - opened})


class Worker:
    """A process that runs commands one after the other, so that torch is imported once."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, words: list[str], seconds: float) -> dict[str, Any]:
        """Runs a command; returns its JSON document, or one with an "error"."""
        return self.ask(seconds, _call, words)

    def ask(self, seconds: float, function: Callable[..., str], *arguments: Any) -> dict[str, Any]:
        """Calls a function in the process; returns its JSON document, or one with an "error"."""
        if seconds <= 0:
            return {"error": {"message": "out of time"}}
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return dict(json.loads(self._pool.submit(function, *arguments).result(seconds)))
        except TimeoutError:
            self.end()
            return {"error": {"message": "out of time"}}
        except (BrokenProcessPool, json.JSONDecodeError) as error:
            self.end()
            return {"error": {"message": f"the process ended without a result: {error}"}}

    def end(self, *, kill: bool = True) -> None:
        """Ends the process: at once, or with `kill=False` when it has finished its work."""
        if self._pool is not None:
            processes = list(self._pool._processes.values())
            for process in processes if kill else ():
                process.kill()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class Report:
    """A report in progress."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        # One for each thread that prepares cases; the first runs all measurements.
        self.workers = [Worker() for _ in range(max(1, hardware.available_cpus() // _CPUS))]
        if len(self.workers) > 1:  # they share the CPUs
            for variable in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
                os.environ.setdefault(variable, str(_CPUS))
        self.cases = [(m, p) for m in asked.models for p in asked.precisions]
        self.end = time.monotonic() + asked.seconds
        gpus = hardware.gpus()
        self.device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        self.batch = asked.batch or ("1,8,64,256" if self.device == "cuda" else "1,8")
        name = cache.slug(gpus[0]["name"] if gpus else "cpu").lower()
        self.path = asked.output / f"report-{name}.json"
        doctor = self.workers[0](["doctor"], self.left())
        runs = [
            name
            for name, state in doctor.get("engines", {}).items()
            if state["run"] and self.device in engines.get(name).devices
        ]
        # Engines that compile for long come last, so that the others get their time.
        self.engines = sorted(set(runs) - set(SLOW)) + [name for name in SLOW if name in runs]
        self.content: dict[str, Any] = {
            "torch": torch.__version__,
            "doctor": doctor,
            "device": self.device,
            "peaks": peaks(self.device),
            "work": {model: work(model) for model in asked.models},
            "cases": [],
        }

    def left(self) -> float:
        """Returns the seconds left."""
        return float(self.end - time.monotonic())

    def run(self) -> None:
        """Prepares cases in parallel, as far as there are CPUs, then measures each alone."""
        for model in self.asked.models:
            shape = globals()[model]().image
            for name, count in {"golden": GOLDEN, "calibration": CALIBRATION}.items():
                images = rows.made_images(shape, count, seed=count)
                np.savez(self.folder / f"{model}-{name}.npz", image=images)
        end = time.monotonic() + self.left() * _PREPARING
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def prepared(case: tuple[str, str]) -> dict[str, Any]:
            worker = free.get()
            try:
                return self.prepare(*case, worker, end)
            finally:
                free.put(worker)

        # The largest models first, since they take longest.
        with ThreadPoolExecutor(len(self.workers)) as pool:
            prepared_cases = list(pool.map(prepared, reversed(self.cases)))
        self.content["prepared"] = round(self.asked.seconds - self.left(), 1)
        for worker in self.workers[1:]:
            worker.end(kill=False)
        for case in reversed(prepared_cases):
            self.content["cases"].append(self.measure(case))
            self.write()
        self.workers[0].end(kill=False)
        self.content["seconds"] = round(self.asked.seconds - self.left(), 1)
        self.write()

    def words(self, model: str, precision: str) -> list[str]:
        """Returns the arguments that select a case."""
        where = ["--root", str(self.folder / "artifacts")]
        return [f"benchmarks.gpu_report:{model}", "--precision", precision, *where]

    def prepare(self, model: str, precision: str, worker: Worker, end: float) -> dict[str, Any]:
        """Exports one case, and builds and verifies each engine."""
        case: dict[str, Any] = {"model": model, "precision": precision}
        words = self.words(model, precision)
        export = ["export", *words, "--inputs", str(self.folder / f"{model}-golden.npz")]
        if precision == "int8":
            export += ["--calibration", str(self.folder / f"{model}-calibration.npz")]
        exported = worker(export, end - time.monotonic())
        if "error" in exported:
            return {**case, "error": exported["error"]["message"]}
        proved, failures = [], []
        for engine in self.engines:
            if precision == "int8" and engines.get(engine).source == "program":
                continue  # only the ONNX graph is quantized
            for stage in ("build", "verify"):
                answer = worker([stage, *words, "--engine", engine], end - time.monotonic())
                if "error" in answer:
                    failures.append(f"{engine} {stage}: {answer['error']['message']}")
                    break
            else:
                proved.append(engine)
        return {**case, "passed": proved, "said": failures}

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """Measures the engines of one case that passed verification."""
        if not case.get("passed"):
            return case
        words = self.words(case["model"], case["precision"])
        worker = self.workers[0]
        device = "cuda:0" if self.device == "cuda" else "cpu"
        inputs = str(self.folder / f"{case['model']}-golden.npz")
        cold = {}
        for engine in case["passed"]:
            name = f"benchmarks.gpu_report-{case['model']}"
            built = self.folder / "artifacts" / name / case["precision"] / engine / "engine"
            cold[engine] = worker.ask(self.left(), _cold, engine, str(built), device, inputs)
        more = ["--batch", self.batch, "--budget", str(self.asked.budget)]
        if self.device == "cuda":
            more.append("--cuda-graph")
        answer = worker(["bench", *words, *more, "--engine", ",".join(case["passed"])], self.left())
        if "error" in answer:
            return {**case, "cold": cold, "error": f"bench: {answer['error']['message']}"}
        measured = answer["outcomes"][-1]["results"]["measurements"]
        return {**case, "cold": cold, "measurements": measured}

    def write(self) -> None:
        """Writes the results so far, as JSON and as Markdown."""
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        self.path.with_suffix(".md").write_text(page(self.content), encoding="utf-8")


def page(content: dict[str, Any]) -> str:
    """Returns the report as Markdown."""
    doctor, known = content["doctor"], content["peaks"]
    card = ", ".join(" ".join(gpu.values()) for gpu in doctor.get("gpus", [])) or "none"
    rates = ", ".join(f"{n} {v / 1e12:,.3g}" for n, v in known.items() if n != "copy")
    lines = [
        f"# {', '.join(content['work'])} on this machine",
        "",
        *deploy(content),
        f"GPU: {card}. CPU: {doctor.get('cpu')}, {doctor.get('cpus')} available. torch"
        f" {content['torch']}. Made by `make gpu-report`.",
        "",
        f"Measured by torch in the same run: copies at {known['copy'] / 1e9:,.1f} GB/s, read and"
        f" written; matrix products in Tflop/s: {rates}. The last columns are the parts of these"
        " rates that the device boundary reaches, counting the network's floating-point operations"
        " and the bytes of its weights, inputs and outputs.",
        "",
        "| model | precision | engine | batch | device µs | end to end µs | images/s | speed |"
        " of matrix rate | of copy rate |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rest = []
    for case in content["cases"]:
        named = f"{case['model']} {case['precision']}"
        if "error" in case:
            rest.append(f"- {named}: {case['error']}")
        rest += [f"- {named}: {text}" for text in case.get("said", [])]
        rest += [
            f"- {named}: {engine} opened in {times['open']:.2f} s, first ran in"
            f" {times['first_run']:.2f} s"
            for engine, times in case.get("cold", {}).items()
            if "error" not in times
        ]
        if "measurements" not in case:
            continue
        for state in case["measurements"].get("machine", {}).get("gpu_states_after", []):
            rest.append(
                f"- {named}: at the end of its measurements the GPU ran at {state['sm_mhz']} MHz,"
                f" {state['celsius']} °C, {state['watts']} W; reasons to throttle:"
                f" {state['throttling']}"
            )
        lines += _lines(case, content["work"][case["model"]], known)
    return "\n".join([*lines, "", *rest]).rstrip() + "\n"


def deploy(content: dict[str, Any]) -> list[str]:
    """Returns the table of the fastest engine that passed verification, by model and batch."""
    best: dict[tuple[str, int], tuple[float, dict[str, Any], str]] = {}
    for case in content["cases"]:
        for entry in case.get("measurements", {}).get("results", ()):
            key = (case["model"], entry["batch"])
            seconds = entry["seconds"]["value"]
            if entry["boundary"] == "device" and seconds < best.get(key, (np.inf,))[0]:
                best[key] = (seconds, entry, case["precision"])
    if not best:
        return []
    lines = [
        "What to deploy: of the engines that passed verification here, the one with the shortest"
        " time on the device. Precisions were measured one after the other, engines side by side."
        " Speed is relative to eager PyTorch in the same precision, or to the first engine if"
        " PyTorch does not have it.",
        "",
        "| model | batch | engine | precision | device µs | images/s | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, batch), (seconds, entry, precision) in sorted(best.items()):
        ratio = entry["ratio"]
        lines.append(
            f"| {model} | {batch} | {entry['name']} | {precision} | {seconds * 1e6:,.1f} |"
            f" {batch / seconds:,.0f} | {ratio['value']:.2f} ({ratio['low']:.2f} to"
            f" {ratio['high']:.2f}) |"
        )
    return [*lines, ""]


def _lines(case: dict[str, Any], needed: dict[str, float], known: dict[str, float]) -> list[str]:
    by_candidate: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in case["measurements"]["results"]:
        by_candidate.setdefault((entry["name"], entry["batch"]), {})[entry["boundary"]] = entry
    lines = []
    for (name, batch), entries in sorted(by_candidate.items(), key=lambda item: item[0][1]):
        device, whole = entries["device"], entries["end to end"]
        seconds = device["seconds"]["value"]
        rate = known.get(case["precision"])
        of_rate = f"{needed['flop'] * batch / seconds / rate:.1%}" if rate else ""
        moved = needed["parameters"] * BYTES[case["precision"]] + needed["bytes"] * batch
        ratio = device["ratio"]
        cells = (
            case["model"],
            case["precision"],
            name,
            str(batch),
            f"{seconds * 1e6:,.1f}{'' if device['settled'] else ' (unstable)'}",
            f"{whole['seconds']['value'] * 1e6:,.1f}",
            f"{batch / seconds:,.0f}",
            f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            of_rate,
            f"{moved / seconds / known['copy']:.1%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _some(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(wrong)}; available: {', '.join(known)}"
            )
        return names

    return parse


def main() -> int:
    """Makes the report; returns 1 if no case was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds a batch size")
    parser.add_argument("--batch")
    parser.add_argument("--models", type=_some(MODELS), default=MODELS)
    parser.add_argument("--precisions", type=_some(PRECISIONS), default=PRECISIONS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    try:  # before minutes are spent
        asked.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=asked.output).close()
    except OSError as error:
        parser.error(f"argument --output: {error}")
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as folder:
        report = Report(asked, Path(folder))
        report.run()
    print(page(report.content))
    return int(not any("measurements" in case for case in report.content["cases"]))


if __name__ == "__main__":
    sys.exit(main())
