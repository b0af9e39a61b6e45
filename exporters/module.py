"""The module that is exported: preprocessing and network in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engines.errors import DeployError

# Pixels of network input per batch: more is slower, since memory for larger activations is asked of
# the operating system each time, and those of a large network would not fit.
_PIXELS = 1 << 19


class Preprocess(nn.Module):
    """Turns a raw uint8 image batch into the floats that a network was trained on.

    Divides by 255; resizes (bilinear, pixel centres aligned at half pixels, as Pillow does when
    it enlarges); repeats a gray channel, or turns the order of the channels around; subtracts the
    mean and divides by the deviation.

    Attributes:
        size: Height and width to resize to, or None.
        channels: Channels to repeat a single one to, or None.
        mean: The mean of each channel, on the scale 0 to 1; empty to skip normalization.
        std: The standard deviation of each channel, on the same scale.
        bgr: Turn the order of the channels around, from red, green, blue to blue, green, red.
        dtype: The dtype to compute in.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.channels = channels
        self.mean = mean
        self.std = std
        self.bgr = bgr
        self.dtype = torch.float32
        # Non-persistent buffers move with the module but stay out of its checkpoints.
        self._buffer("shift", mean)
        self._buffer("scale", std)

    shift: torch.Tensor
    scale: torch.Tensor

    def _buffer(self, name: str, values: tuple[float, ...]) -> None:
        tensor = torch.tensor(values).reshape(1, -1, 1, 1) if values else None
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Turns uint8 `[batch, channels, height, width]` into floats of the network's shape."""
        x = image.to(self.dtype) / 255
        if self.size is not None:
            x = functional.interpolate(x, self.size, mode="bilinear", align_corners=False)
        if self.channels is not None:
            x = x.expand(-1, self.channels, -1, -1)
        if self.bgr:
            x = x[:, [2, 1, 0]]
        if self.mean:
            x = (x - self.shift) / self.scale
        return x

    @property
    def description(self) -> str:
        """The preprocessing in words, for the graph's metadata."""
        steps = ["uint8 image / 255"]
        if self.size is not None:
            steps.append(f"resized to {self.size[0]}x{self.size[1]} (bilinear)")
        if self.channels is not None:
            steps.append(f"repeated to {self.channels} channels")
        if self.bgr:
            steps.append("channels in the order blue, green, red")
        if self.mean:
            steps.append(f"minus {list(self.mean)}, over {list(self.std)}")
        return ", ".join(steps)


class Served(nn.Module):
    """A network behind its preprocessing: raw inputs in, a flat tuple of outputs out.

    Attributes:
        dtype: The dtype in which the network computes. With float64, inputs, preprocessing and
            outputs are float64 too. With a dtype smaller than float32, to which the network is
            already cast, they keep their types, and only the network's own inputs and outputs
            are cast.
    """

    def __init__(
        self, network: nn.Module, prepare: nn.Module | None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.prepare = prepare
        self.network = network
        if dtype == torch.float64:
            to_dtype(self, dtype)
            for module in self.modules():
                if isinstance(module, Preprocess):
                    module.dtype = dtype

    @property
    def pixels(self) -> int:
        """The pixels that the preprocessing resizes an image to; 0 if it resizes none."""
        size = self.prepare.size if isinstance(self.prepare, Preprocess) else None
        return 0 if size is None else size[0] * size[1]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs preprocessing and network; the first axis of all inputs and outputs is the batch."""
        if self.dtype == torch.float64:
            inputs = _cast(inputs, torch.float64)
        if self.prepare is not None:
            prepared = self.prepare(*inputs)
            inputs = prepared if isinstance(prepared, tuple) else (prepared,)
        if self.dtype.itemsize >= torch.float32.itemsize:
            return _untie(inputs, tuple(named_outputs(self.network(*inputs)).values()))
        inputs = _cast(inputs, self.dtype)
        outputs = _untie(inputs, tuple(named_outputs(self.network(*inputs)).values()))
        return _cast(outputs, torch.float32)


def to_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts the floats of a module in place, and returns it.

    Complex numbers become those of float64 with float64, and else those of float32: ONNX has no
    complex type, and exporters turn only these into pairs. `nn.Module.to` would drop their
    imaginary parts.
    """
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return tensor.to(complex_dtype)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    module._apply(cast)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return module


def _untie(
    inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Clones outputs that are also an input or another output.

    A graph has one name for each tensor, and its inputs and outputs need different names.
    """
    known = [*inputs]
    separate = []
    for output in outputs:
        separate.append(output.clone() if any(output is other for other in known) else output)
        known.append(output)
    return tuple(separate)


def _cast(tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors)


def named_outputs(outputs: Any) -> dict[str, torch.Tensor]:
    """Returns a network's outputs by name.

    A mapping or named tuple brings its own names. A single tensor is named `output`, those of a
    tuple or list `output_0`, `output_1` and so on. What they contain in turn is named after both,
    such as `output_0_boxes` or `features_1`.

    Raises:
        DeployError: An output is not a tensor, is complex, or two have one name.
    """
    named: dict[str, Any] = {}
    for name, value in _flat(outputs, ""):
        if name in named:
            raise DeployError(
                f"two outputs of the model are named {name!r}", "give them other names"
            )
        named[name] = value
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise DeployError(
                f"the model's output {name!r} is a {type(value).__name__}, not a tensor",
                "return a tensor, or a tuple or dict of tensors",
            )
        if value.is_complex():
            raise DeployError(
                f"the model's output {name!r} is complex, and ONNX has no complex type",
                "return torch.view_as_real of it",
            )
    return named


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and value of each output in nested containers."""
    if hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{prefix}_{name}" if prefix else str(name))
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _flat(part, f"{prefix or 'output'}_{index}")
    else:
        yield prefix or "output", value


def batch_for(pixels: int, inputs: Sequence[torch.Tensor]) -> int:
    """Returns how many rows of `inputs` to compute at a time.

    Args:
        pixels: Of each row, behind the preprocessing (`Served.pixels`).
    """
    return max(2, min(1000, _PIXELS // max(pixels, *(tensor[0].numel() for tensor in inputs))))
