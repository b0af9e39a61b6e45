"""Real wheels of TensorRT from PyPI, and what their Python modules contain.

The bindings are imported in a process of their own. Those of the whole TensorRT need its
libraries, gigabytes in size, of which an import uses nine functions by name and calls none: a
library of those names takes their place, and ends the process if one is called.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engines import cache as caches

_LEAN = "11.4.0.106"


@dataclass(frozen=True)
class Wheels:
    """Distributions that make one vendor module.

    Attributes:
        engine: The engine that uses the module.
        module: The module; its own wheel has another name than the one that users import.
        requirements: What pip installs; empty for a module of this environment.
        libraries: The major version of the libraries that it needs and the wheels lack.
    """

    engine: str
    module: str
    requirements: tuple[str, ...] = ()
    libraries: str = ""


# The oldest version that the extra allows, the last of TensorRT 10, and the newest.
WHEELS = {
    "TensorRT 10.14": Wheels(
        "tensorrt", "tensorrt_bindings", ("tensorrt-cu13-bindings==10.14.1.48.post1",), "10"
    ),
    "TensorRT 10.16": Wheels(
        "tensorrt", "tensorrt_bindings", ("tensorrt-cu13-bindings==10.16.1.11",), "10"
    ),
    "TensorRT 11.4": Wheels(
        "tensorrt", "tensorrt_bindings", ("tensorrt-cu13-bindings==11.4.0.106",), "11"
    ),
    "lean runtime 11.4": Wheels(
        "tensorrt",
        "tensorrt_lean_bindings",
        (f"tensorrt-lean-cu13-bindings=={_LEAN}", f"tensorrt-lean-cu13-libs=={_LEAN}"),
    ),
    "TensorRT for RTX": Wheels("tensorrt_rtx", "tensorrt_rtx"),
}
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_INSTALL_SECONDS = 300


class UnavailableWheelError(Exception):
    """A wheel could not be installed or imported here."""


@cache
def installed(name: str) -> Path:
    """Returns a folder with an entry of WHEELS, to go on PYTHONPATH.

    Raises:
        UnavailableWheelError: pip could not install it.
    """
    wheels = WHEELS[name]
    folder = caches.cache_folder() / "vendor-wheels" / caches.slug("_".join(wheels.requirements))
    if folder.is_dir() or not wheels.requirements:
        return folder
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", part]
    try:
        subprocess.run(
            [*command, *wheels.requirements],
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
        )
        part.replace(folder)
    except subprocess.CalledProcessError as error:
        errors = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or [f"pip exited with {error.returncode}"])[-1]
        raise UnavailableWheelError(f"{name}: {reason}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableWheelError(f"{name}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


@cache
def contents(name: str) -> dict[str, Any]:
    """Returns what the module of an entry of WHEELS contains, as `_contents` below describes it.

    Raises:
        UnavailableWheelError: It could not be installed or imported.
    """
    from tests.subset import python_path  # of which the child process below has no need

    wheels, folder = WHEELS[name], installed(name)
    environment = {**os.environ, "PYTHONPATH": python_path(folder)}
    if wheels.libraries:
        environment["LD_LIBRARY_PATH"] = str(_stand_in_libraries(folder, wheels.libraries))
    done = subprocess.run(
        [sys.executable, __file__, wheels.module],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UnavailableWheelError(f"{name}: {reason}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _stand_in_libraries(folder: Path, major: str) -> Path:
    """Returns a folder with libraries that have the names an import looks up, and no code."""
    compiler, libraries = shutil.which("cc"), folder / "stand-ins"
    if compiler is None:
        raise UnavailableWheelError("the bindings of TensorRT are imported with a C compiler")
    libraries.mkdir(exist_ok=True)
    source = libraries / "names.c"
    source.write_text("\n".join(f"void {n}(void) {{ __builtin_trap(); }}" for n in _FUNCTIONS))
    for library in _LIBRARIES:
        target = libraries / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    return libraries


def _contents(module: Any) -> dict[str, Any]:
    """Returns the names in a vendor module.

    Returns:
        "version"; "module", the names at its top; and "classes", for each class (nested ones by
        their qualified name) its members. A member is a list of the signatures that pybind11
        documents: empty if it has none, as a member of an enumeration or a function in Python.
    """
    classes: dict[str, dict[str, list[str]]] = {}

    def add(kind: type, name: str) -> None:
        members = classes[name] = {}
        for member in dir(kind):
            value = getattr(kind, member, None)
            if isinstance(value, type) and value.__module__ == kind.__module__:
                add(value, f"{name}.{member}") if member != "__class__" else None
            document = value.fget.__doc__ if isinstance(value, property) else value.__doc__
            members[member] = _signatures(document or "", member, isinstance(value, property))

    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__.startswith(module.__name__):
            add(value, name)
    top = {
        name: _signatures(value.__doc__ or "", name, False) for name, value in vars(module).items()
    }
    return {"version": module.__version__, "module": top, "classes": classes}


def _signatures(document: str, name: str, is_property: bool) -> list[str]:
    """Returns the lines of a docstring that are signatures, each beginning with "("."""
    head = "" if is_property else name
    lines = [line.strip() for line in document.splitlines()]
    # Overloads are numbered.
    lines = [re.sub(r"^\d+\. ", "", line) for line in lines]
    signatures = [line.removeprefix(head) for line in lines if line.startswith(f"{head}(")]
    return [line for line in signatures if " -> " in line and "*args, **kwargs" not in line]


if __name__ == "__main__":
    import importlib

    sys.stdout.write(json.dumps(_contents(importlib.import_module(sys.argv[1]))))
