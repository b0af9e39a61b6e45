"""Sections about where results come from: training, layers, sizes, machine, records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.report.page import choice, figures
from pipeline.report.page.content import Cell, Figure, Section, Table, table
from pipeline.report.page.results import PrecisionResults, Results
from pipeline.report.page.speed import plain
from pipeline.report.train import chance_doubt, describe
from pipeline.report.units import duration, size
from pipeline.verification.verdict import COMPUTED_IN

_CURVES = ("loss", "accuracy")
_MANY_EPOCHS = 12
# A larger confusion matrix is cut to its largest entries.
_MANY_CLASSES = 24
_LARGEST = 20
_LAYERS = 12
_KINDS = 4


def training(results: Results) -> Section | None:
    """Returns the training curve, how it was trained, and the accuracy of each class."""
    content = results.training
    if content is None:
        return None
    text = describe(content)
    text = text[0].upper() + text[1:]
    doubts = tuple(filter(None, [chance_doubt(content)]))
    curve = content["curve"]
    drawn: list[Figure] = []
    tables: list[Table] = []
    if curve:
        names = [name for name in _CURVES if all(name in entry for entry in curve)]
        drawn += [figures.training(name, curve, _course(name, curve)) for name in names]
        columns = [*dict.fromkeys(name for entry in curve for name in entry)]
        columns = ["epoch", *(name for name in columns if name != "epoch")]
        rows = [[_of_epoch(name, entry.get(name, "")) for name in columns] for entry in curve]
        titles = [f">{name}".replace("_", " ") for name in columns]
        tables.append(table("Epochs", titles, rows, folded=len(rows) > _MANY_EPOCHS))
    settings = [
        (name.replace("_", " "), plain(value))
        for name, value in sorted(content.items())
        if isinstance(value, str | bool | int | float)
    ]
    if "confusion" in content:
        tables += _confusion(content["classes"], content["confusion"])
    tables.append(table("Training record", ("field", "value"), settings, folded=True))
    return Section("training", "Training", (f"{text}.",), tuple(drawn), tuple(tables), doubts)


def _course(name: str, curve: Sequence[dict[str, Any]]) -> str:
    first, last = (_of_epoch(name, entry[name]) for entry in (curve[0], curve[-1]))
    return f"In {len(curve)} epochs, the {name} goes from {first} to {last}."


def _of_epoch(name: str, value: Any) -> str:
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.4f}" if name == "loss" else plain(value)


def _confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Iterator[Table]:
    """Returns how the test images of each class were classified."""
    numbers = [f"{number}" for number in range(len(classes))]
    totals = [sum(row) for row in counts]
    chosen = [sum(row[index] for row in counts) for index in range(len(classes))]
    if len(classes) <= _MANY_CLASSES:
        matrix: list[list[Cell | str]] = [
            [
                f"{number} {name}",
                *(Cell(f"{count}", shade=count / max(1, total)) for count in row),
            ]
            for number, name, row, total in zip(numbers, classes, counts, totals, strict=True)
        ]
        yield table(
            "Confusion matrix",
            ("class", *(f">{number}" for number in numbers)),
            matrix,
            note="Rows: the right class; columns: the class that the model chose.",
            dense=True,
        )
    else:
        pairs = sorted(
            (
                (-count, classes[right], classes[wrong])
                for right, row in enumerate(counts)
                for wrong, count in enumerate(row)
                if right != wrong and count
            )
        )
        yield table(
            "Most frequent confusions",
            ("class", "chosen", ">images"),
            [(right, wrong, f"{-count}") for count, right, wrong in pairs[:_LARGEST]],
            note=f"The confusion matrix of {len(classes)} classes is in the training record.",
        )
    yield table(
        "Classes",
        ("class", ">test images", ">right", ">recall", ">precision"),
        [
            (
                f"{number} {name}",
                f"{total:,}",
                f"{row[index]:,}",
                f"{row[index] / total:.2%}" if total else "",
                f"{row[index] / picked:.2%}" if picked else "",
            )
            for index, (number, name, row, total, picked) in enumerate(
                zip(numbers, classes, counts, totals, chosen, strict=True)
            )
        ],
        folded=True,
    )


def layers(results: Results) -> Section | None:
    """Returns the nodes of the graph that cost most, and the types that engines compute in."""
    tables: list[Table] = []
    sentences = []
    for part in results.precisions[:1]:
        tables += _costly(part)
        if part.graph is not None:
            total = part.graph["multiply_adds"]
            sentences.append(
                f"{total:,} multiply-adds a row."
                if total is not None
                else "Multiply-adds are not known: the inputs' size is not fixed, or there are"
                " operators that are not counted."
            )
    rows = []
    silent = []
    for part in results.precisions:
        for engine, content in part.layers.items():
            entries = content["layers"]
            if not entries:
                silent.append(f"{engine} in {part.name}")
                continue
            types = _counted(entry["precision"] or "not known" for entry in entries)
            kinds = _counted((entry["kind"] for entry in entries), _KINDS)
            rows.append((engine, part.name, f"{len(entries)}", types, kinds))
    if rows:
        columns = ("engine", "precision", ">layers", "types of their inputs", "most frequent")
        note = f"No layers are known of {', '.join(silent)}." if silent else ""
        tables.append(table("Layers of the built engines", columns, rows, note=note))
    return Section("layers", "Layers", tuple(sentences), (), tuple(tables)) if tables else None


def _costly(part: PrecisionResults) -> Iterator[Table]:
    if part.graph is None:
        return
    nodes = [node for node in part.graph["nodes"] if node["multiply_adds"]]
    total = sum(node["multiply_adds"] for node in nodes)
    largest = sorted(nodes, key=lambda node: (-node["multiply_adds"], node["name"]))[:_LAYERS]
    rows = [
        (
            node["name"],
            node["operator"],
            node["precision"],
            f"{node['multiply_adds']:,}",
            Cell(f"{node['multiply_adds'] / total:.1%}", shade=node["multiply_adds"] / total),
        )
        for node in largest
    ]
    if rows:
        columns = ("node", "operator", "type", ">multiply-adds", ">share")
        yield table(
            f"The nodes with the most multiply-adds, in {part.name}",
            columns,
            rows,
            note=f"{len(largest)} of {len(nodes)} nodes that multiply.",
        )


def _counted(words: Iterable[str], most: int = 8) -> str:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count} {word}" for word, count in ranked[:most])


def sizes(results: Results) -> Section | None:
    """Returns the size of each file, and of the weights in memory."""
    names = [part.name for part in results.precisions]
    cells: dict[str, dict[str, str]] = {}
    for part in results.precisions:
        if part.graph is not None:
            cells.setdefault("elements", {})[part.name] = f"{part.graph['parameters']:,}"
            cells.setdefault("bytes in memory", {})[part.name] = size(part.graph["size"])
    constants = [(what, *(row.get(name, "") for name in names)) for what, row in cells.items()]
    files: dict[str, dict[str, str]] = {}
    for file in results.files:
        if not file.label.endswith(".json"):
            what = f"{file.kind} {file.engine}".strip()
            files.setdefault(what, {})[file.precision] = size(file.size)
    shared = "all precisions" if any("" in row for row in files.values()) else ""
    rows = [
        (what, row.get("", ""), *(row.get(n, "") for n in names)) for what, row in files.items()
    ]
    tables = []
    if constants:
        tables.append(
            table("Constants of the graph", ("what", *(f">{n}" for n in names)), constants)
        )
    if rows:
        columns = ("file", f">{shared}", *(f">{name}" for name in names))
        tables.append(table("Files", columns, rows, note="Exact sizes are under Provenance."))
    return Section("sizes", "Memory and sizes", (), (), tuple(tables)) if tables else None


def environment(results: Results) -> Section | None:
    """Returns the machines, the versions of libraries, and the inputs and outputs of the graph."""
    rows: list[tuple[str, str, str]] = []
    for run, _, measurements in choice.runs(results.precisions):
        where = f"bench in {run}"
        rows += [(where, *entry) for entry in _flat("", measurements["machine"])]
        rows += [
            (where, f"device of {name}", device) for name, device in measurements["devices"].items()
        ]
    users: dict[tuple[str, str], list[str]] = {}
    for record in results.records.values():
        for entry in record.tools.items():
            users.setdefault(entry, []).append(record.stage)
    for part in results.precisions:
        for subject, verdict in part.verdicts.items():
            for name, value in verdict.facts.items():
                if name != COMPUTED_IN:
                    users.setdefault((name, value), []).append(subject)
    versions = [
        (name, value, ", ".join(dict.fromkeys(names)))
        for (name, value), names in sorted(users.items())
    ]
    tables = [table("Versions and hardware", ("what", "value", "of"), versions)]
    if rows:
        columns = ("where", "what", "value")
        tables.append(table("Machine of the measurements", columns, rows, folded=True))
    tables += [_signature(part) for part in results.precisions[:1] if part.graph is not None]
    return Section("environment", "Environment", (), (), tuple(tables))


def _signature(part: PrecisionResults) -> Table:
    graph = part.graph or {}
    labels = json.loads(graph["metadata"].get("assay.labels", "[]"))
    more = len(labels) - _MANY_CLASSES
    rows = [
        *(("input", text) for text in graph["inputs"]),
        *(("output", text) for text in graph["outputs"]),
        ("opset", f"{graph['opset']}"),
        ("classes", ", ".join(labels[:_MANY_CLASSES]) + (f" and {more} more" if more > 0 else "")),
        *(
            (key.removeprefix("assay.").replace("_", " "), value)
            for key, value in sorted(graph["metadata"].items())
            if key != "assay.labels" and value not in ("", "[]")
        ),
    ]
    return table(f"Graph in {part.name}", ("what", "value"), rows)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields a name and a text for each value within a JSON value."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f"{prefix} {name.replace('_', ' ')}".strip(), part)
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        for number, part in enumerate(value):
            yield from _flat(f"{prefix} {number}", part)
    elif isinstance(value, list):
        if value:
            yield prefix, ", ".join(map(plain, value))
    elif value is not None:
        yield prefix, plain(value)


def provenance(results: Results) -> Section | None:
    """Returns the chain of records from the data to the bundle, with all digests."""
    if not results.records:
        return None
    checked = {file.label: file for file in results.files}
    runs = [
        (
            Cell(path, code=True),
            record.stage,
            record.started[:19].replace("T", " "),
            duration(record.seconds),
            ", ".join(dict.fromkeys(entry["record"] for entry in record.inputs.values())),
            Cell(record.key, code=True),
        )
        for path, record in sorted(results.records.items(), key=lambda item: item[1].started)
    ]
    files = [
        (
            Cell(label, code=True),
            f"{entry['bytes']:,}",
            Cell(entry["sha256"], code=True),
            "yes" if label in checked else "",
        )
        for _, record in sorted(results.records.items(), key=lambda item: item[1].started)
        for label, entry in record.outputs.items()
    ]
    matching = len(checked)
    return Section(
        "provenance",
        "Provenance",
        sentences=(
            f"{len(runs)} records from the data on; each names the digests of its inputs and"
            f" outputs. {matching} files were read for this report, and their digests match.",
        ),
        tables=(
            table(
                "Records",
                ("record", "stage", "started (UTC)", ">time", "made from", "key"),
                runs,
                folded=True,
            ),
            table("Files", ("file", ">bytes", "sha256", "checked"), files, folded=True),
        ),
    )
