"""The README inside a bundle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from engines.contract import Feeds, TensorSpec
from pipeline.bundling import manifest, repositories

MEMBER = "README.md"


def text(
    facts: dict[str, Any],
    inputs: Sequence[TensorSpec],
    feeds: Feeds,
    members: Collection[str],
) -> str:
    """Returns Markdown that describes the bundle and how to verify and use it.

    Args:
        facts: The facts of the bundle's manifest.
        inputs: The graph's inputs.
        feeds: Inputs of a batch of one.
        members: The paths of all other files of the bundle.
    """
    facts = _printable(facts)
    precisions = facts["models"]
    first = next(iter(precisions.values()))
    engines = "\n".join(
        f"| `{name}` | {precision} | `{entry['path']}` | {_verdict(entry)} | "
        + ", ".join(f"{key} {value}" for key, value in sorted(entry["built_with"].items()))
        + " |"
        for precision, model in precisions.items()
        for name, entry in model["engines"].items()
    )
    installs = {
        name: entry["smaller_runtime"]
        for model in precisions.values()
        for name, entry in model["engines"].items()
        if "smaller_runtime" in entry
    }
    runtimes = "".join(
        f"\nA smaller runtime is enough to run `{name}` on the target:\n\n    {install}\n"
        for name, install in installs.items()
    )
    graphs = "\n".join(
        f"- `{model['graph']}` is the ONNX graph in {precision}, and `{model['golden']}` holds"
        " inputs with the float64 outputs of the PyTorch model"
        for precision, model in precisions.items()
    )
    input_lines = "\n".join(f"- input `{spec}`" for spec in first["inputs"])
    outputs = "\n".join(f"- output `{spec}`" for spec in first["outputs"])
    served = "".join(
        f"\n`{folder}` is a model repository of Triton. In the unpacked folder:\n\n"
        f'    tritonserver --model-repository="$PWD/{folder}" --disable-auto-complete-config\n'
        for folder in repositories.folders(members)
    )
    enclosed = "".join(f"\n- `{path}` is enclosed" for path in manifest.documents(members))
    enclosed += "\n" if enclosed else ""
    trained = facts["training"][0].upper() + facts["training"][1:]
    if facts["dataset"]:
        trained += f" ({facts['dataset']})"
    classes = f"- classes, in order: {', '.join(facts['labels'])}\n" if facts["labels"] else ""
    before = f"- before that, each image: {facts['before']}\n" if facts["before"] else ""
    return f"""# {facts["model"]}, {", ".join(precisions)}

{trained}.

{input_lines}
{outputs}
- preprocessing inside the graph: {facts["preprocessing"]}
{before}{classes}

| engine | precision | file | verdict where it was built | built with |
|---|---|---|---|---|
{engines}
{runtimes}
{graphs}

Verify it on this machine, every digest and every engine that can run here:

    assay check BUNDLE.tar.zst

In the unpacked folder (`tar -xf BUNDLE.tar.zst`), a graph runs with `pip install onnxruntime`
alone:

```python
{_example(facts, inputs, feeds)}
```

`assay.load("BUNDLE.tar.zst")` checks the bundle and runs its fastest engine, and `assay serve
BUNDLE.tar.zst` serves it.
{served}{enclosed}
`manifest.json` lists the sha256 of every file, `bom.cdx.json` is a bill of materials, and
`provenance.intoto.json` says what everything was made from. The `.json` file in each artifact's
folder records its inputs, the tools and the time.
"""


def _verdict(engine: dict[str, Any]) -> str:
    drop = engine.get("max_drop")
    note = "" if drop is None else f", if accuracy may fall by {100 * drop:g} points"
    return f"{engine['verdict']}{note}"


def _printable(value: Any) -> Any:
    """Returns a JSON value without line breaks and control characters, which others may put in."""
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else " " for letter in value)
    return value


def _order(inputs: Sequence[TensorSpec]) -> str:
    """Returns what the axes of the inputs are."""
    if [spec.dtype for spec in inputs] == ["uint8"] and len(inputs[0].shape) == 4:  # noqa: PLR2004
        colours = " (red, green, blue)" if inputs[0].shape[1] == 3 else ""  # noqa: PLR2004
        return f"your images: batch, channel{colours}, row, column"
    return "your inputs"


def _example(facts: dict[str, Any], inputs: Sequence[TensorSpec], shown: Feeds) -> str:
    """Returns Python that runs the first graph on zeros, and prints the class or the outputs."""
    graph = next(iter(facts["models"].values()))["graph"]
    feeds = ", ".join(
        f'"{spec.name}": np.zeros({shown[spec.name].shape}, "{spec.dtype}")' for spec in inputs
    )
    lines = [
        "import json",
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{graph}")',
        f"feeds = {{{feeds}}}  # {_order(inputs)}",
        "outputs = session.run(None, feeds)",
    ]
    if facts["labels"]:
        lines.append('labels = json.load(open("manifest.json", encoding="utf-8"))["labels"]')
        return "\n".join([*lines, "print([labels[row.argmax()] for row in outputs[0]])"])
    return "\n".join([*lines[1:], "print([output.shape for output in outputs])"])
