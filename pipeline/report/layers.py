"""The report of `assay summary`: shapes, parameters and multiply-adds, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exporters.module import named_outputs
from pipeline.golden.reference import explained
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.models import Model

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# The kinds of layer that have totals of their own.
KINDS = ("convolutional", "fully connected", "other")


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module of a network.

    Attributes:
        name: The module's path in the network.
        kind: The name of its class.
        output: The shapes of its outputs for a batch of one.
        parameters: Parameters of the module and those inside it; 0 if it was called before.
        multiply_adds: Multiply-adds of the matrix products and convolutions in all its calls,
            for one sample; 0 if it was called before.
    """

    name: str
    kind: str
    output: tuple[tuple[int, ...], ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """The layers of a network and their totals.

    Attributes:
        inputs: Shapes of the network's inputs, after preprocessing, for a batch of one.
        layers: One entry for each call of a module, in the order of the calls.
        totals: "parameters" and "multiply_adds", by kind of layer and for "all".
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[ModuleCall, ...]
    totals: dict[str, dict[str, int]]

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return asdict(self)


def summarise(
    name: str, model: Model, inputs: Sequence[torch.Tensor], depth: int | None
) -> Summary:
    """Runs one sample through a network and records each layer's outputs and operations.

    Args:
        inputs: Raw inputs, each `[1, …]`.
        depth: How many levels of nested modules to list; None means the innermost modules.

    Raises:
        DeployError: The network does not run on the inputs.
    """
    network = model.network.eval()
    counter = FlopCounterMode(display=False)
    shown = [
        (path, module)
        for path, module in network.named_modules()
        if path and _shown(path, module, depth)
    ]
    rows: list[tuple[str, nn.Module, tuple[tuple[int, ...], ...]]] = []

    def note(path: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            rows.append((path, module, _shapes(outputs)))

        return module.register_forward_hook(hook)

    hooks = [note(path, module) for path, module in shown]
    try:
        with torch.inference_mode(), explained(""):
            prepared = inputs if model.prepare is None else model.prepare(*inputs)
            prepared = prepared if isinstance(prepared, tuple | list) else (prepared,)
            with counter:
                network(*prepared)
    finally:
        for hook in hooks:
            hook.remove()
    counts = _counts(counter, network)
    seen: set[str] = set()
    layers = []
    for path, module, output in rows:
        parameters = 0 if path in seen else _parameters(module)
        products = 0 if path in seen else counts.get(path, 0)
        seen.add(path)
        layers.append(ModuleCall(path, type(module).__name__, output, parameters, products))
    shapes = tuple(tuple(tensor.shape) for tensor in prepared)
    return Summary(name, shapes, tuple(layers), _totals(network, counts))


def _shown(path: str, module: nn.Module, depth: int | None) -> bool:
    level = path.count(".") + 1
    innermost = not any(True for _ in module.children())
    return innermost if depth is None else level == depth or (innermost and level < depth)


def _shapes(outputs: Any) -> tuple[tuple[int, ...], ...]:
    values = (
        named_outputs(outputs).values() if not isinstance(outputs, torch.Tensor) else (outputs,)
    )
    return tuple(tuple(value.shape) for value in values)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _counts(counter: FlopCounterMode, network: nn.Module) -> dict[str, int]:
    """Returns multiply-adds by path; torch counts a multiply-add as two operations."""
    root = type(network).__name__
    counts = {}
    for path, operations in counter.get_flop_counts().items():
        if path == root:
            counts[""] = sum(operations.values()) // 2
        elif path.startswith(f"{root}."):
            counts[path.removeprefix(f"{root}.")] = sum(operations.values()) // 2
    return counts


def _totals(network: nn.Module, counts: dict[str, int]) -> dict[str, dict[str, int]]:
    totals = {kind: {"parameters": 0, "multiply_adds": 0} for kind in KINDS}
    for path, module in network.named_modules():
        kind = KINDS[0] if isinstance(module, _CONVOLUTIONS) else KINDS[1]
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            totals[kind]["parameters"] += _parameters(module)
            totals[kind]["multiply_adds"] += counts.get(path, 0)
    every = {"parameters": _parameters(network), "multiply_adds": counts.get("", 0)}
    for key, value in every.items():
        totals["other"][key] = value - sum(totals[kind][key] for kind in KINDS[:2])
    return {**totals, "all": every}


def show(summary: Summary) -> None:
    """Prints the layers, then the totals."""
    shapes = ", ".join(_text(shape) for shape in summary.inputs)
    rows = [
        (
            layer.name,
            layer.kind,
            ", ".join(_text(shape) for shape in layer.output),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        )
        for layer in summary.layers
    ]
    columns = ("layer", "kind", "output", ">parameters", ">multiply-adds")
    console.table(f"{summary.model}, for one sample {shapes}", columns, rows)
    sums = [
        (kind, f"{total['parameters']:,}", f"{total['multiply_adds']:,}")
        for kind, total in summary.totals.items()
    ]
    console.table("Totals", ("layers", ">parameters", ">multiply-adds"), sums)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
