"""The layers that take most of an engine's time, as far as its library tells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.contract import Engine, Feeds, OpenOptions
from engines.layer_report import multiplies

# How long the profiled runs may take, and how many there are at least and at most.
_SECONDS, _FEWEST, _MOST = 0.3, 3, 30


def layer_times(
    engine: Engine, built: Path, options: OpenOptions, feeds: Feeds, seconds: float
) -> list[dict[str, Any]]:
    """Returns name, kind, kernel, seconds and share of each layer, the slowest first.

    Also whether it "multiplies": other layers do nothing that counts as an operation.

    They come from a session of their own, since profiling slows it down. [] if the library does not
    tell.

    Args:
        seconds: How long an inference takes.
    """
    runs = min(max(round(_SECONDS / seconds), _FEWEST), _MOST)
    layers = engine.layer_times(built, options, feeds, runs)
    total = sum(layer.seconds for layer in layers) or 1.0
    return [
        {
            **asdict(layer),
            "share": layer.seconds / total,
            "multiplies": multiplies(layer.kind),
        }
        for layer in sorted(layers, key=lambda layer: -layer.seconds)
    ]
