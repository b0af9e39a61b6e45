"""AOTInductor: the exported program, compiled ahead of time to a package of native code."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shlex
import shutil
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any, Literal

from engines import cache, hardware, temporary
from engines.backends._torch_cuda import channels_last, gpu_problem
from engines.backends.pytorch import (
    PyTorchSession,
    exact_fp32,
    load_program,
    move_to_cuda,
    quietly,
    specs_of,
)
from engines.backends.torch_compile import COMPILERS, missing_compiler
from engines.checks import available_on_cpu, choose_device, import_vendor, installed
from engines.contract import Availability, BuildOptions, Engine, OpenOptions
from engines.errors import DeployError, NotAvailableError
from engines.layer_report import Layer

_INSTALL = "pip install torch"
# Our file in the package, in its folder for files that are not torch's own.
_EXTRA = "model/extra/assay.json"
_SOURCES = (".cpp", ".h", ".cu", ".py")
_MAX_EXTRA_BYTES = 1 << 20
# Packages that this process has opened, by the digest of their bytes and the device.
_LOADED: dict[tuple[str, int, bool], Any] = {}
_LOADING = threading.Lock()


class AOTInductorEngine(Engine):
    """AOTInductor: `torch._inductor.aoti_compile_and_package`, with a dynamic batch.

    The package (.pt2) is compiled for the device and the instruction set of this machine, so it is
    built where it runs: for a CUDA device if torch sees one, otherwise for the CPU. Building one
    needs a C++ compiler, opening does not. The package does not check the shapes and types of its
    inputs; the session does. A package is native code, as a TensorRT plan is: open only those
    whose source you trust.
    """

    name = "aot_inductor"
    module = "torch"
    source: Literal["graph", "program"] = "program"
    devices = ("cuda", "cpu")
    cuda_graphs = True
    suffix = ".pt2"
    machine_code = True

    def available(self) -> Availability:
        library = available_on_cpu(("torch",), _INSTALL)
        why = missing_compiler()
        if library.build and why:
            return Availability(False, True, why, "apt install g++")
        return library

    def gpu_problem(self, index: int) -> str:
        return gpu_problem(import_vendor(self.module, _INSTALL), index)

    def fingerprint(self) -> dict[str, str]:
        return {**installed(("torch",)), **hardware.cpu_fingerprint(), **hardware.gpu_fingerprint()}

    def build(self, source: Path, target: Path, options: BuildOptions) -> tuple[Layer, ...]:
        """Compiles the program. No option applies: the batch stays dynamic.

        Returns:
            An empty tuple: a package does not report its kernels.

        Raises:
            DeployError: The program cannot be read or compiled.
            NotAvailableError: A C++ compiler is not installed.
        """
        torch = import_vendor(self.module, _INSTALL)
        if why := missing_compiler():
            raise NotAvailableError(why, "apt install g++")
        program, signature = load_program(torch, source)
        device = "cuda" if hardware.gpus() and not self.gpu_problem(0) else "cpu"
        # Without a GPU it would warn that it finds no CUDA runtime.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if device == "cuda":
            exact_fp32(torch)
            program = move_to_cuda(program, device)
            for tensor in program.state_dict.values():
                channels_last(torch, tensor)
        with temporary.folder() as folder:
            package = folder / "model.pt2"
            compiler = torch._inductor.config.patch({"cpp.cxx": (str(_compiler(torch)),)})
            try:
                with quietly(), compiler:
                    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
            except Exception as error:  # inductor and the C++ compiler raise many types
                raise DeployError(
                    f"AOTInductor cannot compile {source}: {error}", "build another engine"
                ) from error
            facts = {**signature, "device": device, "instructions": _instructions(torch, device)}
            _pack(package, target, facts)
        return ()

    def open(self, built: Path, options: OpenOptions) -> AOTInductorSession:
        """Opens a package.

        Raises:
            NotAvailableError: It was compiled for another device or instruction set.
            DeployError: The file is not a package of this engine.
        """
        torch = import_vendor(self.module, _INSTALL)
        device = choose_device(self, options.device)
        facts = _facts(built)
        kind = device.partition(":")[0]
        here = _instructions(torch, kind)
        if (facts["device"], facts["instructions"]) != (kind, here):
            raise NotAvailableError(
                f"{built} was compiled for {facts['device']} ({facts['instructions']}), but this"
                f" machine has {kind} ({here})",
                "build it on the machine that runs it",
            )
        exact_fp32(torch)
        torch.set_num_threads(options.threads)
        return AOTInductorSession(torch, built, device, facts, cuda_graph=options.cuda_graph)


def _compiler(torch: Any) -> Path:
    """Returns a C++ compiler that leaves this machine's folders out of what it compiles.

    Otherwise the texts of assertions would name them. It is a script, since torch takes one path.
    """
    command = next(path for path in map(shutil.which, _candidates(torch)) if path)
    folders = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), cache.cache_folder()}
    folders |= {Path(sys.prefix), Path(sys.base_prefix), Path(torch.__file__).parent}
    flags = [
        shlex.quote(f"-ffile-prefix-map={folder}=.")
        for folder in sorted(map(str, folders), key=len)  # the last one that fits is taken
    ]
    text = f'#!/bin/sh\nexec {shlex.quote(command)} {" ".join(flags)} "$@"\n'
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    # Older versions of torch tell the kind of a compiler by its name.
    script = cache.cache_folder() / "compilers" / digest / Path(command).name
    if not script.exists():
        with cache.write_atomic(script) as part:
            part.write_text(text, encoding="utf-8")
            part.chmod(0o755)
    return script


def _candidates(torch: Any) -> tuple[str, ...]:
    """Returns the compilers that inductor would take, the preferred one first."""
    configured = torch._inductor.config.cpp.cxx
    names = configured if isinstance(configured, list | tuple) else (configured,)
    return (*filter(None, names), *COMPILERS)


def _pack(package: Path, target: Path, facts: dict[str, Any]) -> None:
    """Writes a package to `target`, with our facts and without sources, which name folders."""
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w") as archive:
        for member in source.infolist():
            if Path(member.filename).suffix not in _SOURCES:
                with source.open(member) as content, archive.open(member.filename, "w") as copy:
                    shutil.copyfileobj(content, copy)
        archive.writestr(_EXTRA, json.dumps(facts))


def _instructions(torch: Any, kind: str) -> str:
    """Returns the compute capability or instruction set that native code is compiled for."""
    if kind == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability())
    return str(torch.backends.cpu.get_cpu_capability())


def _facts(built: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(built) as archive:
            if archive.getinfo(_EXTRA).file_size > _MAX_EXTRA_BYTES:
                raise ValueError(f"{_EXTRA} is larger than {_MAX_EXTRA_BYTES:,} bytes")
            facts: dict[str, Any] = json.loads(archive.read(_EXTRA))
        for key in ("inputs", "outputs"):
            specs_of(facts[key])
        for key in ("device", "instructions"):
            if not isinstance(facts[key], str):
                raise TypeError(f"{key} is {facts[key]!r:.40}, not text")
        return facts
    except Exception as error:  # zipfile and zlib raise many types for a damaged archive
        raise DeployError(
            f"AOTInductor does not accept {built}: it is not a package of this engine ({error})",
            "build the engine again",
        ) from error


def _loaded(torch: Any, path: Path, device: str, *, cuda_graph: bool) -> Any:
    """Returns the package as a function, the same for all sessions on the same bytes.

    The library of a package is never unmapped and its weights are never freed, so a process that
    loads it for every session would grow each time.

    For CUDA graphs it is loaded without the events by which threads share it, since querying an
    event cannot be captured.
    """
    content = path.read_bytes()
    index = int(device.partition(":")[2] or 0) if device != "cpu" else -1
    key = hashlib.sha256(content).hexdigest(), index, cuda_graph
    with _LOADING:
        if key not in _LOADED:
            try:
                # From memory: a path would have to end in .pt2.
                _LOADED[key] = torch._inductor.aoti_load_package(
                    io.BytesIO(content), run_single_threaded=cuda_graph, device_index=index
                )
            except Exception as error:  # torch documents no exception types
                raise DeployError(
                    f"AOTInductor does not accept {path}: {error}",
                    "build the engine again with this version of torch",
                ) from error
        return _LOADED[key]


class AOTInductorSession(PyTorchSession):
    """An open package; see `engines.contract.Session`."""

    name = "aot_inductor"

    def __init__(
        self,
        torch: Any,
        path: Path,
        device: str,
        facts: dict[str, Any],
        *,
        cuda_graph: bool,
    ) -> None:
        self._torch = torch
        self._set_up(
            _loaded(torch, path, device, cuda_graph=cuda_graph),
            device,
            specs_of(facts["inputs"]),
            specs_of(facts["outputs"]),
            cuda_graph=cuda_graph,
        )


ENGINE = AOTInductorEngine()
