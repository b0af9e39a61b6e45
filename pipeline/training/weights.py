"""Weights from a file of the user's, into a network."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError
from pipeline.workflow.digests import require_file

if TYPE_CHECKING:
    import torch
    from torch import nn

_NAMED = 5  # how many mismatches an error names
# What training scripts commonly put around the weights, and before each name.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."


def read(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file, or a torch file that holds nothing but tensors.

    Raises:
        DeployError: It is neither, or loading it would run code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(path, "give the path of the weights")
    try:
        return load_file(path)
    except SafetensorError as error:
        if path.suffix == ".safetensors":
            raise DeployError(f"{path} is not a safetensors file: {error}") from error
    try:
        # weights_only refuses whatever is not a tensor or a plain container, and so never
        # runs code from the file. There is no fallback.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly anything
        # Not torch's own message: it advises to load the file without that safety.
        raise DeployError(
            f"{path} is neither a safetensors file nor a torch file of tensors alone; if it holds"
            " objects or code, that was not run",
            "save it with safetensors.torch.save_file(model.state_dict(), FILE)",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(
        isinstance(v, torch.Tensor) for v in content.values()
    ):
        raise DeployError(
            f"{path} holds a {type(content).__name__}, not tensors by name",
            "save the model's state_dict()",
        )
    return {str(name).removeprefix(_PREFIX): tensor for name, tensor in content.items()}


def untie(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns copies on the CPU, each with memory of its own, as safetensors wants them.

    Tied weights share theirs; and a layout such as channels_last is not stored.
    """
    import torch

    plain = torch.contiguous_format
    return {n: tensor.detach().cpu().clone(memory_format=plain) for n, tensor in tensors.items()}


def load(network: nn.Module, path: Path, model: str) -> None:
    """Puts the weights of a file into a network.

    Raises:
        DeployError: The file cannot be read, or its tensors do not fit; the message counts all
            mismatches and names the first.
    """
    fit(network, read(path), str(path), model)


def fit(network: nn.Module, tensors: dict[str, torch.Tensor], where: str, model: str) -> None:
    """Puts tensors into a network under their names; see `load`."""
    wanted = network.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not one of the model's" for name in tensors if name not in wanted]
    faults += [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise DeployError(
            f"{where} does not hold the weights of {model}, {len(faults)} of"
            f" {len({*wanted, *tensors})} tensors do not fit: {'; '.join(faults[:_NAMED])}{more}",
            "give the weights of this very architecture and number of classes",
        )
    broken = [n for n, tensor in tensors.items() if not bool(tensor.double().isfinite().all())]
    if broken:
        raise DeployError(
            f"{where}: {len(broken)} tensors have NaN or Inf, as {broken[0]}",
            "no output of such a model is a number; take an earlier checkpoint",
        )
    # The versions of the modules' formats, which files of tensors do not keep: some modules
    # refuse a state without. The names fit, so it is of this version.
    state = OrderedDict(tensors)
    state._metadata = wanted._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)
