"""Engines of two bundles in turns, in a process that their libraries may end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.errors import UsageError
from pipeline.workflow import worker

if TYPE_CHECKING:
    from engines.contract import Session
    from pipeline.bundling.checking import Model

_LETTERS = "AB"


@dataclass(frozen=True)
class Pair:
    """Two models whose engines are to be timed in turns.

    Attributes:
        models: A and B.
        names: The engines of each; the fastest is timed.
        batches: Batch sizes, of A's golden rows.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.
        budget: Seconds for each batch size.
        seed: Seed of the order in rounds.
    """

    models: Sequence[Model]
    names: Sequence[Sequence[str]]
    batches: Sequence[int]
    device: str
    threads: int
    budget: float
    seed: int


def apart(pair: Pair) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times an engine of each of two models in turns, in a new process.

    Returns:
        What `pipeline.benchmarking.comparison.compare` returns, and the device by "A NAME" or
        "B NAME".

    Raises:
        CrashedError: The process died.
        UsageError: They take other inputs, or run on another kind of device.
    """
    names = dict.fromkeys(name for known in pair.names for name in known)
    return worker.call_alone(f"comparing {' and '.join(names)}", here, pair)


def here(pair: Pair) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Does what `apart` does, in this process."""
    from pipeline.benchmarking import several
    from pipeline.benchmarking.comparison import Load, compare
    from pipeline.bundling import opening
    from pipeline.golden import file as goldens

    golden = [goldens.load(model.golden) for model in pair.models]
    loads = [Load(size, golden[0].feeds(size)) for size in pair.batches]
    where = pair.device, pair.threads
    sessions: dict[str, Session] = {}
    others: dict[str, list[Session]] = {}
    with ExitStack() as opened:
        for letter, model, known, rows in zip(
            _LETTERS, pair.models, pair.names, golden, strict=True
        ):
            name, session = opening.fastest([*known], model, rows, *where)
            opens = partial(opening.again, name, model, *where)
            sessions[f"{letter} {name}"] = session
            others[f"{letter} {name}"] = several.more(session, opens, opened)
        _require_alike(*sessions.values())
        results = compare(sessions, loads, budget=pair.budget, seed=pair.seed, others=others)
    return results, {name: session.device for name, session in sessions.items()}


def _require_alike(one: Session, two: Session) -> None:
    """Raises UsageError if two sessions do not take the same inputs on the same kind of device."""
    if len(one.inputs) != len(two.inputs) or not all(
        a.accepts(b) or b.accepts(a) for a, b in zip(one.inputs, two.inputs, strict=True)
    ):
        takes = ["; ".join(map(str, session.inputs)) for session in (one, two)]
        raise UsageError(
            f"A takes {takes[0]}, and B takes {takes[1]}", "compare bundles of the same inputs"
        )
    kinds = [session.device.partition(":")[0] for session in (one, two)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"A is fastest on {kinds[0]}, and B on {kinds[1]}", "give --device or --engine"
        )
