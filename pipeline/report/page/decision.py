"""Decides what to deploy: which of a model's proved and measured engines keep bounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError, NotMetError
from pipeline import models
from pipeline.report.page import bounds as judge
from pipeline.report.page import choice, results
from pipeline.report.page.bounds import Bounds, Kept
from pipeline.report.page.choice import Candidate
from pipeline.report.page.results import Gap
from pipeline.report.train import chance_doubt
from pipeline.workflow import hints

if TYPE_CHECKING:
    from pipeline.workflow.runner import Store


@dataclass(frozen=True)
class Decision:
    """What keeps bounds.

    Attributes:
        compared: All ways to run the model that were measured.
        best: The one to deploy; None if none surely keeps the bounds.
        perhaps: What is surely better than that, and may keep them; None if nothing.
        gaps: Results that are damaged or out of date, so that nothing of them was compared.
        doubt: Why an accuracy may mean nothing; "" if it does.
    """

    bounds: Bounds
    compared: tuple[Kept, ...]
    best: Kept | None
    perhaps: Kept | None
    gaps: tuple[Gap, ...]
    doubt: str

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        best, other = self.best, self.perhaps
        return {
            "bounds": dataclasses.asdict(self.bounds),
            "chosen": None if best is None else dataclasses.asdict(best.candidate),
            "perhaps": None if other is None else dataclasses.asdict(other.candidate),
            "candidates": [dataclasses.asdict(entry) for entry in self.compared],
            "gaps": [dataclasses.asdict(gap) for gap in self.gaps],
        }

    def require(self) -> Candidate:
        """Returns what to deploy; raises NotMetError if nothing surely keeps the bounds."""
        if self.best is not None:
            return self.best.candidate
        raise NotMetError(
            f"none of the {len(self.compared)} ways to run the model that were measured surely"
            " keeps the bounds",
            judge.hint(self.compared, self.bounds),
            self.document(),
        )


def decide(model: str, bounds: Bounds, store: Store) -> Decision:
    """Compares a model's engines of all precisions with bounds.

    With a bound on a time, the best is the one of the highest throughput; else the quickest.

    Raises:
        DeployError: No engine is both proved and measured, or the measurements are not valid.
        UsageError: The model's name is unknown.
    """
    models.check_name(model)
    known = results.collect(model, [], store)
    measure = hints.complete(f"run `{hints.command('bench', {'model': model})}`", store.place)
    accuracy = (known.training or {}).get("test_accuracy")
    try:
        candidates = choice.current(known, beaten=bounds.memory is not None)
        compared = tuple(judge.kept(entry, bounds, accuracy) for entry in candidates)
        best = judge.best(compared, bounds)
    except results.UNREADABLE as error:
        raise DeployError(
            f"the measurements of {model} have not the form that this version of assay writes"
            f" ({type(error).__name__}: {error})",
            measure,
        ) from error
    if not candidates:
        raise DeployError(f"no engine of {model} is both proved and measured", measure)
    return Decision(
        bounds=bounds,
        compared=compared,
        best=best,
        perhaps=None if best is None else judge.perhaps(compared, best, bounds),
        gaps=tuple(known.gaps),
        doubt=chance_doubt(known.training) if known.training else "",
    )
