"""A model of the user's own: `package.module:factory`, imported from the current folder too."""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import import_vendor
from engines.errors import DeployError, UsageError, suggestion
from pipeline.models import Model, ModelSpec

if TYPE_CHECKING:
    from pipeline.data import Contents


def find(place: str, what: str) -> ModelSpec:
    """Imports a module, calls its factory, and returns the model it gave.

    Args:
        place: The module's dotted name.
        what: The name of a function without arguments; it returns an `nn.Module` or a
            `pipeline.models.Model`.

    Raises:
        UsageError: There is no such module or no such function.
        DeployError: Importing or calling raised, or it returned something else.
    """
    name = f"{place}:{what}"
    import_vendor("torch", "pip install torch")
    factory = _import(place, what, name)
    model = _call(factory, name)

    def build(_contents: Contents | None) -> Model:
        return _call(factory, name)

    return ModelSpec(
        name=name,
        build=build,
        image_shape=model.image,
        dataset=model.dataset,
        trainable=model.dataset is not None or model.samples is not None,
        recipe=model.recipe,
        facts=lambda: _sources(place),
    )


def _import(place: str, what: str, name: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the folder is not on the path of an installed tool
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(
                f"{name}: there is no module {error.name!r} in {Path.cwd()} or on Python's path",
                "give package.module:factory, from the folder that holds the package",
            ) from error
        raise _failed(f"importing {place}", error) from error
    except Exception as error:  # the user's code may raise anything
        raise _failed(f"importing {place}", error) from error
    factory = getattr(module, what, None)
    if factory is None:
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise UsageError(f"{name}: {place} has no {what!r}", suggestion(what, functions))
    if not callable(factory):
        raise UsageError(f"{name}: {what!r} is not a function but {type(factory).__name__}")
    return factory


def _call(factory: Any, name: str) -> Model:
    from torch import nn

    try:
        made = factory()
    except Exception as error:  # the user's code may raise anything
        raise _failed(f"{name}()", error) from error
    if isinstance(made, nn.Module):
        made = Model(network=made)
    if not isinstance(made, Model) or not isinstance(made.network, nn.Module):
        raise DeployError(
            f"{name}() returned {type(made).__name__}, not a model",
            "return a torch.nn.Module or a pipeline.models.Model",
        )
    return made


def _failed(what: str, error: Exception) -> DeployError:
    # Its last frame: where the user's code went wrong.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return DeployError(
        f"{what} raised {type(error).__name__}: {error}",
        f"at {Path(frame.filename).name}:{frame.lineno}: {frame.line}",
    )


def _sources(place: str) -> dict[str, str]:
    """Returns one digest over every file that was imported of the factory's package."""
    package = place.partition(".")[0]
    found = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and (name == package or name.startswith(f"{package}.")) and Path(path).is_file():
            found.update(name.encode() + Path(path).read_bytes())
    return {"model_source": found.hexdigest()}
