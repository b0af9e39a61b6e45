"""The printed report of the profile stage."""

from __future__ import annotations

from typing import Any

from engines.errors import CrashedError, FailedError
from pipeline.report.bench import BUSY, UNSETTLED, doubts
from pipeline.report.units import duration, size
from pipeline.workflow import console

# Below this part of the attainable, the layers that lose most are named.
_NEAR = 0.8
_NAMED = 3  # how many of them
_LEAST = 0.01  # smaller parts are not told apart

# A title, titles of columns, and rows of cells.
Table = tuple[str, list[str], list[list[str]]]


def show(document: dict[str, Any]) -> None:
    """Prints what engines cost, what they reached, and the layers that take most of the time."""
    console.table(*cold_start(document), (">before", ">opened", ">file"))
    console.table(*costs(document))
    for sentence in cautions(document):
        console.result(sentence)
    console.table(*roofline(document), (">op/byte", ">Gop", "bound by"))
    for sentence in (*peaks(document), *losses(document)):
        console.result(sentence)


def require_profiles(document: dict[str, Any]) -> None:
    """Raises CrashedError or FailedError if an engine has no profile."""
    failed = [entry for entry in document["engines"] if "error" in entry]
    if not failed:
        return
    kind = CrashedError if any(entry["crashed"] for entry in failed) else FailedError
    error = kind(
        "; ".join(f"{entry['engine']} {_status(entry)}: {entry['error']}" for entry in failed),
        "leave it out with --engine, or build it again",
    )
    error.details = {"costs": document}
    raise error


def _status(entry: dict[str, Any]) -> str:
    return "crashed" if entry["crashed"] else "failed"


def _profiles(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in document["engines"] if "error" not in entry]


def _rows(document: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns pairs of an engine's profile and one of its loads."""
    return [(entry, load) for entry in _profiles(document) for load in entry["loads"]]


def cold_start(document: dict[str, Any]) -> Table:
    """Returns the start and the memory of each engine."""
    rows = []
    for entry in document["engines"]:
        if "error" in entry:
            rows.append([entry["engine"], _status(entry), *[""] * 8])
            continue
        memory = entry["memory"]
        rows.append(
            [
                entry["engine"],
                duration(entry["library_seconds"]),
                duration(entry["open_seconds"]),
                duration(entry["loads"][0]["first_seconds"]),
                size(entry["file_bytes"]),
                size(memory["before"]),
                size(memory["opened"]),
                "" if memory["peak"] is None else size(memory["peak"]),
                size(memory["steady"]),
                _gpu(memory),
            ]
        )
    columns = ["engine", ">library", ">open", ">first run", ">file", ">before", ">opened"]
    return "Cold start, and memory of the process", [*columns, ">peak", ">steady", ">GPU"], rows


def _gpu(memory: dict[str, Any]) -> str:
    """Returns how much more of the GPU's memory is in use than before; "" without a GPU."""
    if not memory["gpu_before"] or not memory["gpu_steady"]:
        return ""
    return f"{float(memory['gpu_steady']) - float(memory['gpu_before']):,.0f} MiB"


def costs(document: dict[str, Any]) -> Table:
    """Returns the first run and the cost of an inference, for each engine and load."""
    rows = [
        [
            entry["engine"],
            _load(load),
            duration(load["first_seconds"]),
            f"{duration(load['seconds']['value'])}{_mark(load)}",
            duration(load["cpu_seconds"]),
            f"{load['cpu_seconds'] / load['wall_seconds']:.1f}",
            "" if load["joules"] is None else f"{load['joules']:.3g} J",
        ]
        for entry, load in _rows(document)
    ]
    columns = ["engine", ">batch", ">first run", ">steady", ">CPU time", ">CPUs", ">energy"]
    return "Cost of an inference", columns, rows


def roofline(document: dict[str, Any]) -> Table:
    """Returns what engines reached of what is attainable on this machine."""
    rows = []
    for entry, load in _rows(document):
        reached = load["roofline"]
        if reached is None:
            continue
        rows.append(
            [
                entry["engine"],
                _load(load),
                _number(sum(load["work"]["operations"].values()) / 1e9),
                _number(reached["intensity"]),
                _number(reached["reached"] / 1e9),
                _number(reached["attainable"] / 1e9),
                reached["bound"],
                f"{_share(reached)}{_mark(load)}",
            ]
        )
    columns = ["engine", ">batch", ">Gop", ">op/byte", ">Gop/s", ">attainable", "bound by"]
    return "Operations per second, of what this machine attains", [*columns, ">share"], rows


def peaks(document: dict[str, Any]) -> list[str]:
    """Returns a sentence on each rate that the shares refer to."""
    sentences = []
    best: dict[str, dict[str, Any]] = {}
    for entry in document["products"]:
        if entry["operations_per_second"] > best.get(entry["precision"], _NONE)[_RATE]:
            best[entry["precision"]] = entry
    for name, entry in best.items():
        sentences.append(
            f"peak in {name}: {_number(entry[_RATE] / 1e9)} Gop/s, by a {entry['kind']} of"
            f" {entry['engine']}; each share refers to the peak in its own rounds"
        )
    too_low = [
        f"{entry['engine']} at batch {_load(load)} exceeds what was taken for attainable: the"
        " measured peak or bandwidth is too low"
        for entry, load in _rows(document)
        if load["roofline"] is not None and load["roofline"]["share"]["low"] > 1
    ]
    reasons = dict.fromkeys(
        f"no share for {entry['engine']}: {load['no_roofline']}"
        for entry, load in _rows(document)
        if load["no_roofline"]
    )
    # Why a type has no peak.
    problems = document["product_problems"] if reasons else []
    return [*sentences, *too_low, *reasons, *problems]


def losses(document: dict[str, Any]) -> list[str]:
    """Returns, for each engine and load far from the attainable, the layers that take longest."""
    sentences, silent = [], dict[str, None]()
    for entry, load in _rows(document):
        reached = load["roofline"]
        if reached is None or reached["share"]["value"] >= _NEAR:
            continue
        if not load["layers"]:
            silent[entry["engine"]] = None
            continue
        idle = sum(layer["share"] for layer in load["layers"] if not layer["multiplies"])
        sentences.append(
            f"{entry['engine']} at batch {_load(load)}: {_percent(reached['share']['value'])};"
            f" {_loss(load['layers'])}; {_percent(idle)} of the time multiplies nothing"
        )
    if silent:
        sentences.append(f"the time of layers is not known of {', '.join(silent)}")
    return sentences


def _loss(layers: list[dict[str, Any]]) -> str:
    """Returns the layers that lose most, or that take longest where the loss is not known."""
    if not layers:
        return ""
    key, word = ("share", "most time") if layers[0]["lost"] is None else ("lost", "lost")
    parts = [
        f"{layer[key]:.0%} in {_title(layer)}"
        for layer in layers[:_NAMED]
        if layer[key] >= _LEAST or layer is layers[0]
    ]
    return f"{word}: {', '.join(parts)}"


def _title(layer: dict[str, Any]) -> str:
    reached = layer["reached"]
    bound = "" if reached is None else f", {_percent(reached)} of its bound"
    return f"{layer['name']} ({layer['kind']}{bound})"


BEST = ["model", "precision", ">batch", "engine", ">steady", ">Gop/s", ">attainable"]
BEST += ["bound by", ">share", "what loses it"]


def best(model: str, precision: str, document: dict[str, Any]) -> list[list[str]]:
    """Returns a row in the columns BEST for each load, on the engine that is the fastest there."""
    fastest: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for entry, load in _rows(document):
        if load["roofline"] is None:
            continue
        name = _load(load)
        if name not in fastest or _seconds(load) < _seconds(fastest[name][1]):
            fastest[name] = entry, load
    rows = []
    for name, (entry, load) in fastest.items():
        reached = load["roofline"]
        far = reached["share"]["value"] < _NEAR
        rows.append(
            [
                *(model, precision, name, entry["engine"]),
                f"{duration(_seconds(load))}{_mark(load)}",
                _number(reached["reached"] / 1e9),
                _number(reached["attainable"] / 1e9),
                *(reached["bound"], _share(reached)),
                _loss(load["layers"]) if far else "",
            ]
        )
    return rows


def _seconds(load: dict[str, Any]) -> float:
    return float(load["seconds"]["value"])


def _share(reached: dict[str, Any]) -> str:
    share = reached["share"]
    if share["high"] < _LEAST:
        return _percent(share["value"])
    return f"{_percent(share['value'])} ({100 * share['low']:.0f}-{100 * share['high']:.0f})"


def _percent(part: float) -> str:
    return f"<{_LEAST:.0%}" if 0 < part < _LEAST else f"{part:.0%}"


def cautions(document: dict[str, Any]) -> list[str]:
    """Returns what is not known, or uncertain, of the costs."""
    loads = [load for _, load in _rows(document)]
    reasons = dict.fromkeys(load["no_energy"] for load in loads if load["no_energy"])
    return [
        *(f"energy is not known here: {reason}" for reason in reasons),
        *doubts({"results": loads}),
    ]


def _load(load: dict[str, Any]) -> str:
    return f"{load['batch']}" + (f" at {load['size']}" if "size" in load else "")


def _mark(load: dict[str, Any]) -> str:
    if load["busy"]:
        return f" {BUSY}"
    return "" if load["settled"] else UNSETTLED


def _number(value: float) -> str:
    """Returns a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


_RATE = "operations_per_second"
_NONE = {_RATE: 0.0}
