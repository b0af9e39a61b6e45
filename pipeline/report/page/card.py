"""Writes a model card for Hugging Face's hub: the measured figures, as text and as metadata."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from engines.checks import import_vendor
from engines.errors import DeployError
from pipeline.bundling import measured
from pipeline.bundling.measured import Figure
from pipeline.report.bench import WHOLE
from pipeline.report.page import markdown
from pipeline.report.page.results import UNREADABLE, Results
from pipeline.report.units import duration
from pipeline.workflow.artifacts import FOLDER_PREFIX

if TYPE_CHECKING:
    from pipeline.workflow.hints import Place


# Of the end-to-end latencies; the page and the bundle have the others.
_QUANTILES = ("median", "p99")


def text(results: Results, place: Place, licence: str | None = None) -> str:
    """Returns the card: metadata in YAML, then Markdown.

    Args:
        licence: The hub's name of the model's licence.

    Raises:
        NotAvailableError: huggingface_hub is not installed.
        DeployError: A file has another form than this version of assay writes.
    """
    hub = import_vendor("huggingface_hub", "pip install huggingface_hub")
    try:
        known = {part.name: _figures(results, part) for part in results.precisions}
        graph: dict[str, Any] = next(part.graph for part in results.precisions if part.graph) or {}
        metadata = graph["metadata"]
        dataset, labels = metadata["assay.dataset"], metadata["assay.labels"] != "[]"
    except (*UNREADABLE, StopIteration) as error:
        words = " ".join(
            [results.model, *(f"--precision {p.name}" for p in results.precisions[:1])]
        )
        raise DeployError(
            f"the results of {results.model} are not complete, or not of this version of assay",
            f"run `assay run {words}`",
        ) from error
    task = "image-classification" if labels and "uint8" in graph["inputs"][0] else "other"
    # Without a data set a card has no place for results, so it names one called none.
    evaluated = {
        "task_type": task,
        "dataset_type": dataset or "none",
        "dataset_name": dataset or "none",
    }
    data = hub.ModelCardData(
        library_name="onnx",
        model_name=results.model,
        license=licence,
        tags=["onnx", "assay"],
        # The hub knows no folders of ours.
        datasets=[dataset] if dataset and not dataset.startswith(FOLDER_PREFIX) else None,
        pipeline_tag=None if task == "other" else task,
        eval_results=[
            hub.EvalResult(
                **evaluated,
                metric_type=figure.kind,
                metric_name=f"{figure.kind} ({precision}; {figure.where})",
                metric_value=figure.value,
            )
            for precision, figures in known.items()
            for figure in figures
        ],
    )
    body = markdown.text(results, place) + _latencies(known)
    return str(hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _figures(results: Results, part: Any) -> list[Figure]:
    verdicts = {name: dataclasses.asdict(verdict) for name, verdict in part.verdicts.items()}
    figures = measured.collect(results.training, verdicts, part.measurements)
    return [
        figure
        for figure in figures
        if not figure.boundary or (figure.boundary == WHOLE and figure.quantile in _QUANTILES)
    ]


def _latencies(known: dict[str, list[Figure]]) -> str:
    """Returns a table of the figures that have an interval."""
    rows = []
    for precision, figures in known.items():
        for figure in figures:
            if figure.low is not None and figure.high is not None:
                interval = f"{duration(figure.low)} to {duration(figure.high)}"
                value = duration(float(figure.value))
                rows.append((precision, figure.quantile, value, interval, figure.where))
    if not rows:
        return ""
    columns = ("precision", "latency", "value", "95 % interval", "where")
    lines = [markdown.row(columns), markdown.row(["---"] * len(columns))]
    lines += [markdown.row([markdown.escaped(cell) for cell in row]) for row in rows]
    return "\n".join(["", "### Latency", "", *lines, ""])
