"""A trained module becomes a graph: program, ONNX, precisions, canonical bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A precision that a model can be exported in.

    Attributes:
        name: As `--precision` and the artifacts' folders have it.
        dtype: torch's name of the type that the module itself is cast to.
        weights: numpy's name of the type of the graph's weights.
        unit: The unit of rounding: the spacing of numbers at 1.
        opset: The first ONNX opset that has it; None for the exporter's own.
        made_from: The precision whose graph is quantized; "" where the module is cast.
        quantizer: The module whose `quantize` does that.
        cpu_graph: The quantizer makes another graph for CPUs, too.
    """

    name: str
    dtype: str
    weights: str
    unit: float
    opset: int | None = None
    made_from: str = ""
    quantizer: str = ""
    cpu_graph: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the graph is made of another one, and judged by accuracy too.

        Quantization adds noise beyond rounding, and PyTorch cannot run the result.
        """
        return bool(self.made_from)

    @property
    def computed_in(self) -> str:
        """The precision in which the PyTorch model is run to be compared with."""
        return self.made_from or self.name


DEFAULT_PRECISION = "fp32"
# What there is to know of each, in one place: everything else is looked up here. Of an opset, what
# counts are the types of convolutions and poolings.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "float32", "float32", 2.0**-23),
        Precision("fp16", "float16", "float16", 2.0**-10),
        Precision("bf16", "bfloat16", "bfloat16", 2.0**-7, opset=22),
        Precision(
            "int8",
            "float32",
            "int8",
            2.0**-7,
            made_from="fp32",
            quantizer="exporters.quantize",
            cpu_graph=True,
        ),
        # E4M3. Opset 19 has the type; 20 is the exporter's own.
        Precision(
            "fp8",
            "float32",
            "float8_e4m3fn",
            2.0**-3,
            opset=20,
            made_from="fp32",
            quantizer="exporters.quantize_fp8",
        ),
    )
}
QUANTIZED = tuple(name for name, precision in PRECISIONS.items() if precision.quantized)
# What a module itself can be cast to, besides its own type.
REDUCED = tuple(
    name
    for name, precision in PRECISIONS.items()
    if not precision.quantized and name != DEFAULT_PRECISION
)
