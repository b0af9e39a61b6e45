"""Exports trained modules: torch.export programs, ONNX graphs, precisions, quantization."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A precision that a model can be exported in.

    Attributes:
        name: The value of `--precision`, and the name of the artifacts' folder.
        dtype: Name of the torch dtype that the module is cast to.
        weights: Name of the numpy dtype of the graph's weights.
        unit: The unit of rounding: the spacing of numbers at 1.
        opset: The first ONNX opset with this type for convolutions and poolings; None for the
            exporter's default.
        made_from: The precision whose graph is quantized; "" if the module is cast instead.
        quantizer: The module whose `quantize` function quantizes that graph.
        cpu_graph: True if the quantizer makes a second graph for CPUs.
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
        """Whether the graph is quantized from another precision's graph.

        Quantization adds noise beyond rounding and PyTorch cannot run the result, so such a
        graph is also judged by its accuracy.
        """
        return bool(self.made_from)

    @property
    def computed_in(self) -> str:
        """The precision at which the PyTorch model runs for the comparison."""
        return self.made_from or self.name


DEFAULT_PRECISION = "fp32"
# The one table of precisions; all other code looks them up here.
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
        # E4M3. Opset 19 introduces the type; 20 is the exporter's default.
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
# Precisions that a module is cast to, besides the default.
REDUCED = tuple(
    name
    for name, precision in PRECISIONS.items()
    if not precision.quantized and name != DEFAULT_PRECISION
)


def name_of(dtype: str) -> str:
    """Returns the precision whose module is of a dtype, by torch's or numpy's name of it."""
    return next(
        name for name, row in PRECISIONS.items() if row.dtype == dtype and not row.quantized
    )
