"""The time of each node of a graph, from ONNX Runtime's profiler."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from engines.contract import Feeds
from engines.layer_report import LayerTime, typical_times

_KERNEL_TIME = "_kernel_time"  # how the names of nodes end in a profile
# What optimisations add to the name of a node or of its output.
_FUSION = re.compile(r"^fused |(_nchwc)?(_token_\d+)?$")


def profiled(session: Any, feeds: Feeds, runs: int) -> tuple[LayerTime, ...]:
    """Runs an `InferenceSession` that was opened for profiling, and ends its profile.

    Args:
        runs: How many inferences count, besides a first one that does not.
    """
    for _ in range(runs + 1):
        session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return typical_times(_node_times(events)[1:], lambda name: _FUSION.sub("", name))


def _node_times(events: list[dict[str, Any]]) -> list[dict[tuple[str, str, str], float]]:
    """Returns, for each run in a profile, the seconds of its nodes by name, operator and ""."""
    whole = [event for event in events if event["name"] == "model_run"]
    nodes = [event for event in events if event["name"].endswith(_KERNEL_TIME)]
    runs = []
    for run in sorted(whole, key=lambda event: event["ts"]):
        times: dict[tuple[str, str, str], float] = defaultdict(float)
        for node in nodes:
            if run["ts"] <= node["ts"] <= run["ts"] + run["dur"]:
                name = node["name"].removesuffix(_KERNEL_TIME)
                times[name, node["args"]["op_name"], ""] += node["dur"] / 1e6
        runs.append(dict(times))
    return runs
