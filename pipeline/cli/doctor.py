"""The report of `assay doctor`: this machine, and which engines it can build and run."""

from __future__ import annotations

import dataclasses
import platform
import sys
from typing import Any

import engines
from engines import hardware
from engines.checks import import_vendor
from engines.errors import CrashedError, NotAvailableError
from pipeline.workflow import console, worker


def examine() -> dict[str, Any]:
    """Returns a description of the machine; imports every installed vendor library as a test."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": hardware.cpu_model(),
        "cpus": hardware.available_cpus(),
        "memory_gib": round(hardware.memory_gib(), 1),
        "gpus": list(hardware.gpus()),
        "no_gpu": hardware.no_gpu(),
        "engines": {name: _engine(name) for name in engines.names()},
    }


def _engine(name: str) -> dict[str, Any]:
    engine = engines.get(name)
    state = engine.available()
    if state.build or state.run:
        try:
            # In a child process, which a broken library may end.
            module = engine.runtime_module()
            worker.call(f"importing {module}", _import, module, state.install)
        except (NotAvailableError, CrashedError) as error:
            state = dataclasses.replace(state, build=False, run=False, reason=error.message)
    gpu = state.run and "cuda" in engine.devices and hardware.gpus()
    if why := engine.gpu_problem(0) if gpu else "":
        state = dataclasses.replace(state, reason=f"{state.reason}, on the CPU: {why}")
    return {"build": state.build, "run": state.run, "reason": state.reason, "fix": state.install}


def _import(module: str, install: str) -> None:
    import_vendor(module, install)


def show(machine: dict[str, Any]) -> None:
    """Prints the machine and its engines as two tables."""
    gpus = [
        (
            f"GPU {number}",
            f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability"
            f" {gpu['compute_capability']}, driver {gpu['driver'] or 'version unknown'}"
            f" (CUDA {gpu['cuda']}),"
            f" {gpu['uuid']}",
        )
        for number, gpu in enumerate(machine["gpus"])
    ]
    rows = [
        ("Python", machine["python"]),
        ("platform", machine["platform"]),
        ("CPU", f"{machine['cpu']}, {machine['cpus']} available"),
        ("memory", f"{machine['memory_gib']} GiB"),
        *(gpus or [("GPU", f"none: {machine['no_gpu']}")]),
    ]
    console.table("This machine", ("", ""), rows)
    states = [
        (name, _yes(state["build"]), _yes(state["run"]), state["reason"])
        for name, state in machine["engines"].items()
    ]
    console.table("Engines", ("engine", "builds", "runs", "details"), states)
    for name, state in machine["engines"].items():
        if state["fix"]:
            console.result(f"to get {name}: {state['fix']}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
