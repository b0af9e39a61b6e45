"""Refuses networks that cannot be exported, and puts those of other types into float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engines.errors import DeployError
from pipeline.models import Model
from pipeline.workflow import console

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engines.contract import Array


def check(model: Model, name: str) -> None:
    """Checks that a model consists of initialised PyTorch modules with float weights.

    Args:
        name: The name of the model, for error messages.

    Raises:
        DeployError: A part is a TorchScript module or an exported program, is quantized, has no
            values yet, or has state that is no tensor.
    """
    import torch

    for part in (model.network, model.prepare):
        if part is None:
            continue
        for path, module in part.named_modules():
            what = f"{name}(): {_at(path)} is a {type(module).__name__}"
            if isinstance(module, torch.jit.ScriptModule):
                raise DeployError(
                    f"{what}, a TorchScript module, whose code torch.export cannot trace",
                    "return the nn.Module that was traced or scripted",
                )
            if ".quantized" in type(module).__module__:
                raise DeployError(
                    f"{what} of {type(module).__module__}, which is quantized already",
                    "return the float network, and give --precision int8 to quantize it",
                )
        try:
            part.train(part.training)
        except NotImplementedError as error:  # an exported program has no modes
            raise DeployError(
                f"{name}(): it is a program of torch.export, which has no evaluation mode",
                "return the nn.Module that was exported",
            ) from error
        for path, tensor in _tensors(part):
            if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
                raise DeployError(
                    f"{name}(): {path} has no values yet",
                    "initialise it in the factory; a lazy module needs one run on an example",
                )
        for path, value in part.state_dict().items():
            if not isinstance(value, torch.Tensor):
                raise DeployError(
                    f"{name}(): {path} in its state is a {type(value).__name__}, not a tensor",
                    "keep numbers in buffers; a checkpoint holds tensors only",
                )


def in_float32(model: Model, name: str, *, announced: bool) -> Model:
    """Returns a model whose network computes in float32; it is changed if it has another type.

    Weights of float16 and bfloat16 keep their values. What the network computes at a lower
    precision is decided at export.

    Args:
        name: The name of the model, for messages.
        announced: Print what is changed.
    """
    import numpy as np
    import torch

    from exporters.module import to_dtype

    dtypes = {p.dtype for p in model.network.parameters() if p.is_floating_point()}
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32})
    if not others:
        return model
    to_dtype(model.network, torch.float32)

    def narrowed(array: Array) -> Array:
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    inputs = {key: narrowed(array) for key, array in model.inputs.items()}
    if announced:
        kept = "rounded" if "float64" in others else "with the same values"
        console.say(f"{name}: its weights are {' and '.join(others)}: converted to float32, {kept}")
        for key, array in inputs.items():
            if array.dtype != model.inputs[key].dtype:
                console.say(f"{name}: its input {key} is float32, not {model.inputs[key].dtype}")
    samples = model.samples
    if samples is not None:
        samples = narrowed(samples[0]), narrowed(samples[1])
    return dataclasses.replace(model, inputs=inputs, samples=samples)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _at(path: str) -> str:
    return f"its {path}" if path else "it"
