"""The limits of a verdict, all in one place."""

from __future__ import annotations

# An engine may add up in another order than PyTorch, and compute an exponential to fewer digits:
# ONNX Runtime's graphs of eleven torchvision models lay at 0.4 to 1.3 times the floor, and at 0.4
# to 1.8 on their worst rows. Every material fault of benchmarks/parity.py exceeds a limit.
K = 4.0
# The largest of many rows lies further out than their mean.
K_MAX = 6.0
# What a quantized classifier may lose, as a fraction of the test images, and the least signal
# to quantization noise of any output, in dB: at 10 the noise is a third of the signal.
MAX_DROP = 0.01
MIN_SQNR = 10.0
