"""The README inside a bundle."""

from __future__ import annotations

from typing import Any


def text(facts: dict[str, Any]) -> str:
    """Returns Markdown that describes the bundle and how to verify it.

    Args:
        facts: The facts of the bundle's manifest.
    """
    engines = "\n".join(
        f"| `{name}` | `{entry['path']}` | {entry['verdict']} | "
        + ", ".join(f"{key} {value}" for key, value in sorted(entry["built_with"].items()))
        + " |"
        for name, entry in facts["engines"].items()
    )
    runtimes = "".join(
        f"\nA smaller runtime is enough to run `{name}` on the target:\n\n"
        f"    {entry['smaller_runtime']}\n"
        for name, entry in facts["engines"].items()
        if "smaller_runtime" in entry
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

| engine | file | verdict where it was built | built with |
|---|---|---|---|
{engines}
{runtimes}
`{facts["graph"]}` is the ONNX graph, and `{facts["golden"]}` holds
inputs with the float64 outputs of the PyTorch model.

Verify it on this machine, every digest and every engine that can run here:

    assay check BUNDLE.tar.gz

`manifest.json` lists the sha256 of every file. The `.json` file in each artifact's folder records
its inputs, the tools and the time.
"""
