"""The README inside a bundle."""

from __future__ import annotations

from typing import Any


def text(facts: dict[str, Any]) -> str:
    """Returns Markdown that says what the bundle holds and how to prove it."""
    engines = "\n".join(
        f"| `{name}` | `{entry['path']}` | {entry['verdict']} | "
        + ", ".join(f"{key} {value}" for key, value in sorted(entry["built_with"].items()))
        + " |"
        for name, entry in facts["engines"].items()
    )
    inputs = "\n".join(f"- input `{spec}`" for spec in facts["inputs"])
    outputs = "\n".join(f"- output `{spec}`" for spec in facts["outputs"])
    trained = facts["training"][0].upper() + facts["training"][1:]
    if facts["dataset"]:
        trained += f" ({facts['dataset']})"
    classes = f"- classes, in order: {', '.join(facts['labels'])}\n" if facts["labels"] else ""
    return f"""# {facts["model"]}, {facts["precision"]}

{trained}.

{inputs}
{outputs}
- preprocessing inside the graph: {facts["preprocessing"]}
{classes}

| engine | file | proved equal to PyTorch where it was built | built with |
|---|---|---|---|
{engines}

`{facts["graph"]}` is the ONNX graph, and `{facts["golden"]}` holds
inputs with the float64 outputs of the PyTorch model.

Prove it on this machine, every byte and every engine that can run here:

    assay check BUNDLE.tar.gz

`manifest.json` lists the sha256 of every file. The `.json` file beside each artifact records
what it was made from, with what, and when.
"""
