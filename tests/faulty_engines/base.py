"""ONNX Runtime with a fault, as a base for the engines of this folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from engines.backends import onnxruntime
from engines.contract import Availability, BuildOptions, Engine, OpenOptions, Session
from engines.layer_report import Layer


@dataclass(frozen=True)
class Faulty(Engine):
    """Copies the graph and opens it with ONNX Runtime; subclasses do something else instead."""

    name: str
    module: str = "onnxruntime"
    source: str = "graph"
    devices: tuple[str, ...] = ("cpu",)

    def available(self) -> Availability:
        return Availability(build=True, run=True)

    def fingerprint(self) -> dict[str, str]:
        return {}

    def build(self, source: Path, target: Path, _options: BuildOptions) -> tuple[Layer, ...]:
        shutil.copyfile(source, target)
        return ()

    def open(self, built: Path, options: OpenOptions) -> Session:
        return onnxruntime.ENGINE.open(built, options)
