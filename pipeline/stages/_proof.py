"""What a verdict has to say before an engine's speed means anything."""

from __future__ import annotations

from typing import Any

import engines
from engines.errors import ParityError
from pipeline.workflow import hints


def require_proof(engine: str, verdict: dict[str, Any], model: str, device: str) -> None:
    """Checks that an engine is proved, and on the kind of device that it is measured on.

    Other kernels run on another one, so the proof says nothing about them.

    Args:
        verdict: The content of the engine's verdict.
        device: As in `--device`.

    Raises:
        ParityError: It is not.
    """
    from engines.checks import choose_device

    words = {"model": model, "precision": verdict["precision"], "engine": engine}
    if verdict["status"] != "pass":
        raise ParityError(
            f"{engine} is not measured, since its verdict in {verdict['precision']} is"
            f" {verdict['status']!r}: {verdict['reason']}",
            f"leave it out with --engine, or see `{hints.command('verify', words)}`",
        )
    proved = str(verdict["facts"].get("device", ""))
    chosen = choose_device(engines.get(engine), device)
    if proved and proved.partition(":")[0] != chosen.partition(":")[0]:
        raise ParityError(
            f"{engine} is not measured on {chosen!r}: it is proved on {proved!r} only",
            f"run `{hints.command('verify', words | {'device': chosen})}`, or give --device"
            f" {proved.partition(':')[0]}",
        )
