"""The layers that take an engine's time, and what each loses, as far as its library tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.contract import Engine, Feeds, OpenOptions
from engines.layer_report import LayerTime, multiplies
from exporters.work import Product
from pipeline.benchmarking.roofline import Roofline

# How long the profiled runs may take, and how many there are at least and at most.
_SECONDS, _FEWEST, _MOST = 0.3, 3, 30


def layer_times(
    engine: Engine, built: Path, options: OpenOptions, feeds: Feeds, seconds: float
) -> tuple[LayerTime, ...]:
    """Returns the time of each layer, from a session of its own, since profiling slows it down.

    Args:
        seconds: How long an inference takes.
    """
    runs = min(max(round(_SECONDS / seconds), _FEWEST), _MOST)
    return engine.layer_times(built, options, feeds, runs)


def losses(
    layers: Sequence[LayerTime],
    products: Sequence[Product],
    roofline: Roofline | None,
    seconds: float,
) -> list[dict[str, Any]]:
    """Returns the layers in their JSON form, the one that loses most first.

    Besides the fields of `LayerTime`, each has its "share" of the time; whether it "multiplies";
    "lost", the part of the whole time by which it takes longer than its own product has to; and
    "reached", what it attains of that bound. These two are None where they are not known; then the
    slowest is first.

    Args:
        products: Those of the graph.
        roofline: What the machine attains, if it is known.
        seconds: How long an inference takes without the profiler.
    """
    total = sum(layer.seconds for layer in layers) or 1.0
    of_layers = None if roofline is None else products_of(layers, products)
    entries = []
    for index, layer in enumerate(layers):
        share = layer.seconds / total
        entry = {
            **asdict(layer),
            "share": share,
            "multiplies": multiplies(layer.kind),
            "lost": None,
            "reached": None,
        }
        if roofline is not None and of_layers is not None:
            own, least = share * seconds, 0.0
            if (product := of_layers.get(index)) is not None:
                computing = product.operations / roofline.peaks[product.precision]
                least = max(computing, product.weights / roofline.bandwidth)
                entry["reached"] = least / own if own else None
            entry["lost"] = max(0.0, own - least) / seconds
        entries.append(entry)
    key = "share" if of_layers is None else "lost"
    return sorted(entries, key=lambda entry: -entry[key])


def products_of(
    layers: Sequence[LayerTime], products: Sequence[Product]
) -> dict[int, Product] | None:
    """Returns the product of each layer that multiplies, by the number of the layer.

    None unless each layer has one by its name, and each product has a layer.
    """
    known: dict[int, Product] = {}
    left = [*products]
    waiting = [index for index, layer in enumerate(layers) if multiplies(layer.kind)]
    while waiting:
        # Two products that are added share the name of the sum, but only one is fused with it.
        index, named = min(
            ((i, [p for p in left if layers[i].node in p.names]) for i in waiting),
            key=lambda pair: len(pair[1]),
        )
        if len(named) != 1:
            return None
        waiting.remove(index)
        left.remove(named[0])
        known[index] = named[0]
    return None if left else known
