"""Opening a graph or engine and judging it, or saying why that cannot be done here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import engines
from engines.base import Array, OpenOptions, choose_device
from engines.errors import NotAvailableError
from exporters import files
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
    golden = goldens.load(golden_path)
    if runner(subject) == GRAPH_RUNNER:
        files.read(path, data=False)  # nothing may lead out of its folder
    verdict = _judge(subject, path, golden, precision, OpenOptions(device, threads), images)
    return parity.with_audit(verdict, audit(path, golden.weights)) if subject == GRAPH else verdict


def _judge(
    subject: str,
    path: Path,
    golden: goldens.Golden,
    precision: str,
    asked: OpenOptions,
    images: Array | None,
) -> parity.Verdict:
    engine, device = engines.get(runner(subject)), asked.device
    found = engine.available()
    if not found.run:
        return parity.not_run(subject, precision, found.reason)
    kind = device.partition(":")[0]
    if subject == GRAPH:
        device = "auto"  # the graph is judged by one engine, wherever the others run
    elif kind in ("cpu", "cuda") and kind not in engine.devices:
        return parity.not_run(subject, precision, f"it does not run on {device!r}")
    options = dataclasses.replace(
        asked, device=choose_device(engine, device), optimize=subject != GRAPH
    )
    try:
        session = engine.open(path, options)
    except NotAvailableError as error:  # such as a type that it has no kernels for
        return parity.not_run(subject, precision, error.message)
    try:
        test, count = None, len(golden.test_labels)
        if images is not None and count:
            test = {golden.input_specs[0].name: images[:count]}
        verdict = parity.judge(subject, session, golden, test)
    finally:
        session.close()
    return dataclasses.replace(verdict, facts={**engine.fingerprint(), "device": session.device})
