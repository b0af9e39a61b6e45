"""Reading files of weights and loading them into a network."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError
from pipeline.training import weight_names
from pipeline.workflow import console
from pipeline.workflow.digests import require_file

if TYPE_CHECKING:
    import torch
    from torch import nn

_NAMED = 5  # how many mismatches an error names


def read(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a safetensors file, or of a torch file that holds them by name.

    The dictionaries of a torch file may hold numbers, texts and dictionaries, too.

    Raises:
        DeployError: The file is neither, or loading it would run code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(path, "give the path of the weights")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, AttributeError, ValueError, TypeError) as error:
        if path.suffix == ".safetensors":
            raise DeployError(f"{path} is not a safetensors file: {error}") from error
    try:
        _check_archive(path)
        # weights_only refuses all but tensors and plain containers, so no code from the file
        # runs. There is no fallback.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly anything
        # Not torch's own message, which advises to load the file unsafely.
        raise DeployError(
            f"{path} is neither a safetensors file nor a torch file that holds only"
            f" tensors{_object(error)}; no code in it was run",
            "save it with safetensors.torch.save_file(model.state_dict(), FILE)",
        ) from error
    try:
        tensors = weight_names.flatten(content)
    except ValueError as error:
        raise DeployError(f"{path}: {error}", "save each tensor once") from error
    if not tensors:
        raise DeployError(
            f"{path} holds a {type(content).__name__}, not tensors by name",
            "save the model's state_dict()",
        )
    for name, tensor in tensors.items():
        if fault := _kind(tensor):
            raise DeployError(
                f"{path}: {name} is {fault}, not a plain tensor",
                "save the state_dict() of a model that is neither sparse nor quantized, on the CPU",
            )
    return tensors


def _object(error: Exception) -> str:
    """Returns the class that torch refused to load, in words."""
    refused = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
    return f" (it holds a {refused[1]})" if refused else ""


def _check_archive(path: Path) -> None:
    """Raises ValueError if parts of the file are compressed, which torch.save never does."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")


def _kind(tensor: torch.Tensor) -> str:
    """Returns what a tensor is that does not simply hold its numbers; "" for one that does."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    return "" if tensor.device.type == "cpu" else f"on the device {tensor.device}"


def save(tensors: Mapping[str, torch.Tensor], path: Path, facts: dict[str, str] | None) -> None:
    """Writes a safetensors file.

    Args:
        facts: Its metadata.

    Raises:
        OSError: It cannot be written; safetensors raises an error of its own instead.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(untie(tensors), path, facts)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def untie(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns contiguous copies on the CPU that share no memory, as safetensors requires.

    Tied weights share memory, and safetensors does not store a layout such as channels_last.
    """
    import torch

    plain = torch.contiguous_format
    return {n: tensor.detach().cpu().clone(memory_format=plain) for n, tensor in tensors.items()}


def load(network: nn.Module, path: Path, model: str, key: str | None = None) -> None:
    """Loads the weights of a file into a network.

    Args:
        key: The first parts of the tensors' names in the file, if it holds several models.

    Raises:
        DeployError: The file cannot be read, or its tensors do not fit; the message counts all
            mismatches and names the first.
    """
    tensors, note = weight_names.select(read(path), network, key, str(path))
    if note:
        console.say(f"weights: {note} of {path}")
    fit(network, tensors, str(path), model)


def fit(network: nn.Module, tensors: dict[str, torch.Tensor], where: str, model: str) -> None:
    """Loads tensors into a network by name.

    Args:
        where: Source of the tensors, for the error message.
        model: Name of the model, for the error message.

    Raises:
        DeployError: Names, shapes or types do not fit, a tensor has NaN or infinities, or tied
            weights differ.
    """
    import torch

    wanted = network.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not one of the model's" for name in tensors if name not in wanted]
    faults += [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults += [
        f"{name} is {_dtype(tensors[name])} instead of {_dtype(tensor)}"
        for name, tensor in wanted.items()
        if name in tensors and not _convertible(tensors[name], tensor)
    ]
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise DeployError(
            f"{where} does not hold the weights of {model}: {len(faults)} of"
            f" {len({*wanted, *tensors})} tensors do not fit: {'; '.join(faults[:_NAMED])}{more}."
            f" It holds {weight_names.listed(tensors)}",
            "give weights of the same architecture and kind of numbers; if only the number of"
            " classes differs, --replace-head trains a new last layer",
        )
    broken = [n for n, tensor in tensors.items() if not _as_finite_as(wanted[n], tensor)]
    if broken:
        raise DeployError(
            f"{where}: {len(broken)} tensors have NaN or Inf, such as {broken[0]}",
            "use an earlier checkpoint",
        )
    for first, *others in weight_names.shared(network):
        for other in others:
            values = [tensors[name].to(wanted[name].dtype) for name in (first, other)]
            if not torch.equal(*values):
                raise DeployError(
                    f"{where}: {first} and {other} differ, but are one tensor of {model}",
                    "give weights of a model that ties them, too; or untie the model's",
                )
    converted = Counter(
        f"{_dtype(tensor)} to {_dtype(wanted[name])}"
        for name, tensor in tensors.items()
        if tensor.dtype != wanted[name].dtype
    )
    for types, count in converted.items():
        console.say(f"weights: {count} tensors of {where} are converted from {types}")
    # Files of tensors do not hold the version of each module's state, which some modules require.
    # The names fit, so the network's own versions are right.
    state = OrderedDict(tensors)
    state._metadata = wanted._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)


def _as_finite_as(own: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a tensor is finite, except where the network's own has the same infinity.

    A buffer with an attention mask holds -inf on purpose.
    """
    # In the network's own type, which may have a smaller range.
    value = tensor.to(own.dtype)
    if value.is_complex():
        return bool(value.isfinite().all())
    value = value.double()
    return bool((value.isfinite() | (value.isinf() & (value == own.to(value)))).all())


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _convertible(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor holds the same kind of numbers as the network's own.

    A float of 8 bits is not taken for another float: its scale is stored elsewhere.
    """
    if tensor.dtype == own.dtype:
        return True
    if tensor.is_floating_point() and own.is_floating_point():
        return tensor.itemsize > 1 and own.itemsize > 1
    kinds = [(t.is_floating_point(), t.is_complex(), _dtype(t) == "bool") for t in (tensor, own)]
    return kinds[0] == kinds[1] and bool((tensor.to(own.dtype).to(tensor.dtype) == tensor).all())
