"""Commands of stages at one precision: they take several, and do everything once for each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from engines.errors import DeployError, UsageError
from exporters import PRECISIONS
from pipeline.cli.stage_runs import joined
from pipeline.workflow import console

_Document = dict[str, Any]


def each(
    run: Callable[[dict[str, Any]], _Document],
    arguments: dict[str, Any],
    quantized: Collection[str] = (),
) -> _Document:
    """Runs a command at each of the precisions; those after one that fails have their turn, too.

    Args:
        run: Gets the arguments with one precision, and returns the JSON form of the results.
        arguments: As the command line gives them: `precision` is a list, or is not there.
        quantized: Names of arguments for quantized precisions. If one of several precisions is
            quantized, the others do without.

    Returns:
        The JSON form of the results; of several precisions, by precision.

    Raises:
        DeployError: The command failed at one or more precisions. Wrong usage ends it at once, if
            nothing has been run.
    """
    asked = arguments.get("precision")
    if not isinstance(asked, list):  # the default, or a stage of several precisions at once
        return run(arguments)
    precisions = list(dict.fromkeys(asked))
    if len(precisions) == 1:
        return run({**arguments, "precision": precisions[0]})
    documents: dict[str, _Document] = {}
    failed: dict[str, tuple[DeployError, list[str]]] = {}  # by message
    mixed = any(PRECISIONS[name].quantized for name in precisions)
    for precision in precisions:
        left_out = quantized if mixed and not PRECISIONS[precision].quantized else ()
        own = {name: value for name, value in arguments.items() if name not in left_out}
        if any("error" not in document for document in documents.values()):
            own.pop("retrain", None)  # all precisions are of the same weights
        console.result(f"{precision}:")
        try:
            documents[precision] = run({**own, "precision": precision})
        except DeployError as error:
            if isinstance(error, UsageError) and not documents:
                raise
            documents[precision] = {"error": error.document(), **error.details}
            failed.setdefault(error.message, (error, []))[1].append(precision)
    if failed:
        raise _together(failed.values(), documents)
    return {"precisions": documents}


def _together(
    failed: Collection[tuple[DeployError, list[str]]], documents: dict[str, _Document]
) -> DeployError:
    """Returns one error for several, each with the precisions at which it was raised."""
    hints = "; ".join(dict.fromkeys(error.hint for error, _ in failed if error.hint))
    for error, where in failed:
        error.message = f"{', '.join(where)}: {error.message}"
    errors = [error for error, _ in failed]
    # Usage is wrong at one precision; what was found at another counts for more.
    failure = joined([error for error in errors if not isinstance(error, UsageError)] or errors)
    failure.message = "; ".join(error.message for error in errors)
    failure.hint, failure.details = hints, {"precisions": documents}
    return failure
