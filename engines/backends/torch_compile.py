"""PyTorch's compiler: the exported program, compiled by inductor when it is opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engines.backends.pytorch import PyTorchEngine, PyTorchSession, quietly
from engines.contract import Availability, BuildOptions, Feeds, OpenOptions
from engines.errors import NotAvailableError
from engines.layer_report import Layer, LayerTime

COMPILERS = ("g++", "clang++")


def missing_compiler() -> str:
    """Returns why inductor cannot compile for a CPU here; "" if it can."""
    if any(map(shutil.which, COMPILERS)):
        return ""
    return f"inductor needs a C++ compiler, and there is neither {' nor '.join(COMPILERS)}"


class TorchCompileEngine(PyTorchEngine):
    """`torch.compile` with the inductor backend and a dynamic batch.

    `build` only copies the program, as the engine `pytorch` does: inductor compiles for the machine
    it runs on, and caches the result in the cache folder (or TORCHINDUCTOR_CACHE_DIR). The first
    run at batch 1, and the first at any other batch, compile: seconds to minutes.
    """

    name = "torch_compile"

    def available(self) -> Availability:
        library = super().available()
        why = missing_compiler()
        if library.build and why:
            return Availability(True, False, why, "apt install g++")
        return library

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Copies the program, once it has loaded without error. No option applies.

        Returns:
            An empty tuple: inductor decides on fusions when it compiles.
        """
        super().build(source, target, options)
        return ()

    def layer_times(
        self, built: Path, options: OpenOptions, feeds: Feeds, runs: int
    ) -> tuple[LayerTime, ...]:
        """Returns (): inductor's kernels are not layers of the program."""
        return ()

    def open(self, built: Path, options: OpenOptions) -> PyTorchSession:
        if why := missing_compiler():
            raise NotAvailableError(why, "apt install g++")
        return TorchCompileSession(*self.prepared(built, options), cuda_graph=options.cuda_graph)


class TorchCompileSession(PyTorchSession):
    """An open program, compiled at its first run; see `engines.contract.Session`."""

    name = "torch_compile"

    def _compiled(self, module: Any) -> Any:
        compiled = self._torch.compile(module, dynamic=True)
        seen = set[object]()

        def call(*tensors: Any) -> Any:
            shapes = tuple(tensor.shape for tensor in tensors)
            if shapes in seen:
                return compiled(*tensors)
            with quietly():  # it may compile, and then logs a lot
                outputs = compiled(*tensors)
            seen.add(shapes)
            return outputs

        return call


ENGINE = TorchCompileEngine()
