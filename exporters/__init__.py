"""A trained module becomes a graph: program, ONNX, precisions, canonical bytes."""

# Made of the fp32 graph, and judged by accuracy too: its noise is not rounding alone.
QUANTIZED = "int8"
PRECISIONS = ("fp32", "fp16", "bf16", QUANTIZED)
