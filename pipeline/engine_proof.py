"""Opening a graph or engine and judging it, or saying why that cannot be done here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import engines
from engines.base import Array, OpenOptions, choose_device
from engines.errors import NotAvailableError
from pipeline import golden as goldens
from pipeline import parity
from pipeline.audit import audit

# The exported graph itself is a subject too. This engine runs it as it is, unoptimised.
GRAPH = "graph"
GRAPH_RUNNER = "onnxruntime"


def runner(subject: str) -> str:
    """Returns the name of the engine that runs a subject."""
    return GRAPH_RUNNER if subject == GRAPH else subject


def prove(
    subject: str,
    path: Path,
    golden_path: Path,
    precision: str,
    *,
    device: str,
    threads: int,
    images: Array | None = None,
) -> parity.Verdict:
    """Returns the verdict on a file; "not run" if this machine has no means to run it.

    Args:
        subject: "graph", or the engine that `path` was built for.
        images: The test set, uint8 `[count, channels, height, width]`; without it top-1 is
            compared on the golden file's own images. The first ones are used, as many as the
            golden file has labels for.
    """
    verdict = _judge(subject, path, golden_path, precision, device, threads, images)
    if subject != GRAPH or (verdict.status == "not run" and not path.exists()):
        return verdict
    return parity.with_audit(verdict, audit(path, goldens.load(golden_path).weights))


def _judge(
    subject: str,
    path: Path,
    golden_path: Path,
    precision: str,
    device: str,
    threads: int,
    images: Array | None,
) -> parity.Verdict:
    engine = engines.get(runner(subject))
    found = engine.available()
    if not found.run:
        return parity.not_run(subject, precision, found.reason)
    kind = device.partition(":")[0]
    if subject == GRAPH:
        device = "auto"  # the graph is judged by one engine, wherever the others run
    elif kind in ("cpu", "cuda") and kind not in engine.devices:
        return parity.not_run(subject, precision, f"it does not run on {device!r}")
    golden = goldens.load(golden_path)
    options = OpenOptions(
        device=choose_device(engine, device), threads=threads, optimize=subject != GRAPH
    )
    try:
        session = engine.open(path, options)
    except NotAvailableError as error:  # such as a type that it has no kernels for
        return parity.not_run(subject, precision, error.message)
    try:
        count = len(golden.test_labels)
        test = (
            {golden.input_specs[0].name: images[:count]} if images is not None and count else None
        )
        verdict = parity.judge(subject, session, golden, test)
    finally:
        session.close()
    return dataclasses.replace(verdict, facts={**engine.fingerprint(), "device": session.device})
