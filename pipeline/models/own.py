"""The user's own models: `package.module:factory` or `path/to/file.py:factory`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engines.checks import import_vendor
from engines.errors import DeployError, UsageError, suggestion
from pipeline.models import Model, ModelSpec, network_types

if TYPE_CHECKING:
    from engines.contract import Array
    from pipeline.data.registry import Contents


def find(place: str, what: str, seed: int) -> ModelSpec:
    """Imports a module and calls its factory once.

    A factory may be slow or use much memory. So the first `build` returns the model of this call,
    if torch's generator is in the state that it had before the call.

    Args:
        place: The module's dotted name, searched for in the current folder, too; or the path of
            its file, which is loaded under a unique module name.
        what: The name of a function without arguments that returns an `nn.Module` or a
            `pipeline.models.Model`.
        seed: Seed of torch's generator during the call.

    Raises:
        UsageError: The module, or the function in it, does not exist.
        DeployError: Importing or calling raised, or the function returned something else, such as
            a TorchScript module.
    """
    name = f"{place}:{what}"
    torch = import_vendor("torch", "pip install torch")
    before = set(sys.modules)
    factory = _import(place, what, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = _call(factory, name, first=True)
    unused = [model]
    package = module_of(place) if is_file(place) else place.partition(".")[0]
    modules = (set(sys.modules) - before) | {
        module_name
        for module_name in sys.modules
        if module_name == package or module_name.startswith(f"{package}.")
    }

    def build(_contents: Contents | None) -> Model:
        kept = unused.pop() if unused else None
        if kept is not None and torch.equal(torch.get_rng_state(), state):
            return kept
        return _call(factory, name, first=False)

    return ModelSpec(
        name=name,
        build=build,
        image_shape=model.image,
        dataset=model.dataset,
        trainable=model.dataset is not None or model.samples is not None,
        recipe=model.recipe,
        facts=lambda: _sources(modules),
    )


def is_file(place: str) -> bool:
    """Whether a model's place is the path of a file; else it is a module's name."""
    return place.endswith(".py")


def module_of(place: str) -> str:
    """Returns the module name for a file; it has a digest of the path, so that it is unique."""
    digest = hashlib.sha256(os.fsencode(Path(place).resolve())).hexdigest()[:12]
    return f"_assay_model_{digest}"


def _load(place: str, name: str) -> ModuleType:
    """Loads a file as a module, which can import the other modules in its folder."""
    path = Path(place).resolve()
    if not path.is_file():
        raise UsageError(f"{name}: {place} does not exist", "give path/to/file.py:factory")
    known = sys.modules.get(module_of(place))
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(module_of(place), path)
    assert spec is not None  # noqa: S101 - it ends in .py
    assert spec.loader is not None  # noqa: S101
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that its files hide no other module
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if isinstance(error, Exception | SystemExit):  # the user's code may raise anything
            raise _failed(f"importing {place}", error) from error
        raise
    return module


def _import(place: str, what: str, name: str) -> Any:
    if is_file(place):
        return _factory(_load(place, name), place, what, name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # an installed script does not have it on its path
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(
                f"{name}: module {error.name!r} is neither in {Path.cwd()} nor on Python's path",
                "run the command in the folder that holds the package",
            ) from error
        raise _failed(f"importing {place}", error) from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _failed(f"importing {place}", error) from error
    return _factory(module, place, what, name)


def _factory(module: ModuleType, place: str, what: str, name: str) -> Any:
    factory = getattr(module, what, None)
    if factory is None:
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise UsageError(f"{name}: {place} has no {what!r}", suggestion(what, functions))
    from torch import nn

    if isinstance(factory, nn.Module | Model):  # a module can be called, too
        kind = type(factory).__name__
        raise UsageError(
            f"{name}: {what!r} is a {kind} that is made already, not a function that makes one",
            f"each training starts from a new model: write `def make(): return {kind}(...)` and"
            f" give {place}:make",
        )
    if not callable(factory):
        raise UsageError(f"{name}: {what!r} is {type(factory).__name__}, not a function")
    return factory


def _call(factory: Any, name: str, *, first: bool) -> Model:
    from torch import nn

    try:
        model = factory()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _failed(f"{name}()", error) from error
    if isinstance(model, nn.Module):
        model = Model(network=model)
    if not isinstance(model, Model) or not isinstance(model.network, nn.Module):
        raise DeployError(
            f"{name}() returned {type(model).__name__}, not a model",
            "return a torch.nn.Module or an assay.Model",
        )
    network_types.check(model, name)
    inputs = {key: _array(name, key, value) for key, value in model.inputs.items()}
    return network_types.in_float32(
        dataclasses.replace(model, inputs=inputs), name, announced=first
    )


def _array(name: str, key: str, value: Any) -> Array:
    """Returns an example input, which may be a tensor or a list, as a numpy array."""
    import numpy as np
    import torch

    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            # numpy has no bfloat16, whose values float32 holds exactly.
            array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        else:
            array = value
        array = np.asarray(array)
    except (TypeError, ValueError) as error:
        raise DeployError(f"{name}(): input {key!r} is not an array: {error}") from error
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise DeployError(
            f"{name}(): input {key!r} is {array.dtype}{list(array.shape)}, not rows of numbers",
            "give a numpy array or a tensor whose first axis is the batch",
        )
    return array


def _failed(what: str, error: BaseException) -> DeployError:
    if isinstance(error, SyntaxError) and error.filename:
        place = f"at {Path(error.filename).name}:{error.lineno}"
        return DeployError(f"{what} raised {type(error).__name__}: {error.msg}", place)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    hint = f"at {Path(frame.filename).name}:{frame.lineno}: {frame.line}"
    if frame.filename == __file__:
        hint = "the factory is called without arguments and must return a model"
    return DeployError(f"{what} raised {type(error).__name__}: {error}", hint)


def _sources(modules: set[str]) -> dict[str, str]:
    """Returns one digest of the source files of modules that are not installed packages."""
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
    digest = hashlib.sha256()
    for name in sorted(modules):
        path = getattr(sys.modules.get(name), "__file__", None)
        if path and not path.startswith(installed) and Path(path).is_file():
            digest.update(name.encode() + Path(path).read_bytes())
    return {"model_source": digest.hexdigest()}
