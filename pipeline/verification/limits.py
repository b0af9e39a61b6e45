"""The limits of a verdict, all in one place; a changed one re-verifies what was made under it."""

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
# Roundings between a batch norm's parameters and the weight it was folded into: variance +
# epsilon, the root, the quotient, the product. For the bias, a difference and a sum more.
WEIGHT_ROUNDINGS = 6
# The batch sizes an engine is judged at, besides the largest; at a small one, golden rows enough
# to fill so many batches.
BATCH_SIZES = (1, 2, 7)
BATCHES_OF_A_SIZE = 16
# Runs at the precision, rounded at random, that measure the noise besides the plain run.
NOISE_RUNS = 4
# A row is beyond comparison where rounding moves it by more than this many units of its own
# scale (ten of the 24 bits of fp32 are lost), or by more than this part of it. Such a model
# multiplies any difference a thousandfold, and a few runs do not tell how far: an untrained
# EfficientNet does so with a black image, whose outputs are ten thousand times as large as a
# photograph's.
LOST_UNITS = 2.0**10
LOST_PART = 1 / 8
# How far a row's noise is raised towards the usual at most: its few runs are not off by more.
RAISED_NOISE = 2.0
# Rows that are computed alone, too, and how far they may then lie off in float64, where results
# of other batch sizes differ by rounding alone.
ROWS_ALONE = 6
ALONE_TOLERANCE = 1e-9


def facts() -> dict[str, str]:
    """Returns every limit by its name, as a part of the key of what is judged by it."""
    return {f"limit {name}": repr(value) for name, value in globals().items() if name.isupper()}
