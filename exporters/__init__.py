"""A trained module becomes a graph: program, ONNX, precisions, canonical bytes."""

PRECISIONS = ("fp32", "fp16", "bf16")
