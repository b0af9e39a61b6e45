"""All limits of a verdict. Changing one runs again the stages that judge by it."""

from __future__ import annotations

# The largest error in units of the noise floor, as root mean square over the rows. An engine may
# add up in another order than PyTorch, and compute an exponential to fewer digits: in ONNX Runtime,
# the graphs of eleven torchvision models had errors of 0.4 to 1.3 floors, and of 0.4 to 1.8 on
# their worst rows. Every material fault of benchmarks/parity.py exceeds a limit.
MAX_RMS_IN_FLOORS = 4.0
# The largest error of any row. The largest of many is further out than their mean.
MAX_ERROR_IN_FLOORS = 6.0
# The largest drop in accuracy of a quantized classifier, as a fraction of the test images, unless
# the export says otherwise, and the
# least signal to quantization noise ratio of any output, in dB: at 10 the noise is a third of the
# signal.
MAX_DROP = 0.01
MIN_SQNR = 10.0
# Roundings between a batch norm's parameters and a folded weight: variance + epsilon, the root, the
# quotient, the product. A folded bias has a difference and a sum more.
WEIGHT_ROUNDINGS = 6
# The batch sizes an engine is judged at, besides the largest. At a small one, only as many golden
# rows run as fill this many batches.
BATCH_SIZES = (1, 2, 7)
BATCHES_OF_A_SIZE = 16
# Runs with random rounding that measure the noise, besides the plain run at the precision.
NOISE_RUNS = 4
# A row is beyond comparison if rounding moves it by more than this many rounding units of its own
# scale (ten of the 24 bits of fp32 are lost), or by more than this fraction of its scale. On such a
# row the model multiplies any difference a thousandfold, and a few runs do not show how far: an
# untrained EfficientNet does so on a black image, whose outputs are ten thousand times as large as
# a photograph's.
MAX_NOISE_UNITS = 2.0**10
MAX_NOISE_FRACTION = 1 / 8
# The largest factor by which a row's noise is raised towards the usual noise: the few runs that
# measure it do not miss more.
MAX_NOISE_RAISE = 2.0
# The least noise of a row, as a part of one rounding unit of the output's usual scale, which three
# quarters of the rows do not exceed: engines approximate functions such as sigmoid to an absolute
# error, and ONNX Runtime's is exactly 0 where the model's is 1e-13.
LEAST_NOISE = 2.0**-10
USUAL_SCALE_QUANTILE = 0.75
# How many rows are also computed alone in float64, and how much they may then differ, as a part of
# the row's largest output: results at other batch sizes differ by rounding only.
ROWS_ALONE = 6
ALONE_TOLERANCE = 1e-9


def facts() -> dict[str, str]:
    """Returns every limit by its name, for the keys of the stages that judge by them."""
    return {f"limit {name}": repr(value) for name, value in globals().items() if name.isupper()}
