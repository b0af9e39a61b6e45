"""What Triton's configurations in a bundle may say: what assay writes, and no more.

A configuration can make Triton load any file as a program. This is checked in the text, line by
line, so that a machine without Triton's messages finds it, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TENSOR = {"name", "data_type", "dims"}
# By the fields around them, the fields that a configuration may have.
_FIELDS = {
    (): {"name", "platform", "backend", "max_batch_size"},
    ("input",): _TENSOR,
    ("output",): _TENSOR | {"label_filename"},
    ("dynamic_batching",): {"preferred_batch_size", "max_queue_delay_microseconds"},
    ("instance_group",): {"kind", "count"},
    ("optimization",): set(),
    ("optimization", "execution_accelerators"): set(),
    ("optimization", "execution_accelerators", "gpu_execution_accelerator"): {"name"},
    ("optimization", "execution_accelerators", "gpu_execution_accelerator", "parameters"): {
        "key",
        "value",
    },
    ("model_warmup",): {"name", "batch_size", "count"},
    ("model_warmup", "inputs"): {"key"},
    ("model_warmup", "inputs", "value"): {"data_type", "dims", "input_data_file"},
    ("response_cache",): set(),
    ("parameters",): {"key"},
    ("parameters", "value"): {"string_value"},
}
# The values that fields may have, if not any text, number or name.
_ACCELERATOR = ("optimization", "execution_accelerators", "gpu_execution_accelerator")
_VALUES = {
    ("platform",): r'"(onnxruntime_onnx|tensorrt_plan)"',
    ("backend",): r'"openvino"',
    ("output", "label_filename"): r'"labels\.txt"',
    ("model_warmup", "inputs", "value", "input_data_file"): r'"input\d{1,9}"',
    (*_ACCELERATOR, "name"): r'"(cuda|tensorrt)"',
    (*_ACCELERATOR, "parameters", "key"): r'"use_tf32"',
    ("parameters", "key"): r'"assay\.\w+"',
}
_LINE = re.compile(
    r' *(?:(?P<open>\w+) \{|(?P<name>\w+): (?P<value>"(?:[^"\\]|\\.)*"|-?[\w.]+)|(?P<close>\}))',
    re.ASCII,
)


def strange_lines(text: str) -> Iterator[str]:
    """Yields the lines of a configuration that assay does not write."""
    around: tuple[str, ...] = ()
    for line in text.split("\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None or (match["close"] and not around):
            yield line
            return
        if match["open"]:
            around = (*around, match["open"])
            if around not in _FIELDS:
                yield line
                return
        elif match["close"]:
            around = around[:-1]
        else:
            place = (*around, match["name"])
            wanted = _VALUES.get(place, "(?s:.*)")
            if match["name"] not in _FIELDS[around] or not re.fullmatch(wanted, match["value"]):
                yield line
    if around or not text.endswith("\n"):
        yield "(the end)"
