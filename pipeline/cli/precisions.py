"""Commands of stages at one precision: they take several, and do everything once for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.errors import DeployError, UsageError
from pipeline.cli.stage_runs import joined

_Document = dict[str, Any]


def each(run: Callable[[dict[str, Any]], _Document], arguments: dict[str, Any]) -> _Document:
    """Runs a command at each of the precisions; those after one that fails have their turn, too.

    Args:
        run: Gets the arguments with one precision, and returns the JSON form of the results.
        arguments: As the command line gives them: `precision` is a list, or is not there.

    Returns:
        The JSON form of the results; of several precisions, by precision.

    Raises:
        UsageError: What is asked for contradicts itself; the rest is not run.
        DeployError: The command failed at one or more precisions.
    """
    asked = arguments.get("precision")
    if not isinstance(asked, list):  # the default, or a stage of several precisions at once
        return run(arguments)
    precisions = list(dict.fromkeys(asked))
    if len(precisions) == 1:
        return run({**arguments, "precision": precisions[0]})
    documents: dict[str, _Document] = {}
    failed: dict[str, tuple[DeployError, list[str]]] = {}  # by message
    for precision in precisions:
        try:
            documents[precision] = run({**arguments, "precision": precision})
        except UsageError:
            raise
        except DeployError as error:
            documents[precision] = {"error": error.message, **error.details}
            failed.setdefault(error.message, (error, []))[1].append(precision)
    if failed:
        for one, where in failed.values():
            one.message = f"{', '.join(where)}: {one.message}"
        failure = joined([one for one, _ in failed.values()])
        failure.details = {"precisions": documents}
        raise failure
    return {"precisions": documents}
