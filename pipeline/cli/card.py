"""The command that writes a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.errors import DeployError, UsageError, suggestion
from exporters import PRECISIONS
from pipeline.cli.flags import make_store, storing
from pipeline.workflow import console
from pipeline.workflow.digests import require_output


@click.command()
@click.argument("model")
@click.option("--precision", help="Precision of the graph [all that were exported].")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to write [standard output].",
)
@click.option(
    "--license", "licence", metavar="ID", help="The hub's name of the model's licence, as in mit."
)
@storing
def card(
    model: str, precision: str | None, out: Path | None, licence: str | None, **values: Any
) -> None:
    """Write a model card for Hugging Face's hub, with the measured figures."""
    from engines.cache import write_atomic
    from pipeline import models
    from pipeline.report.page import card as writer
    from pipeline.report.page import results

    store = make_store(values)
    if out is not None:
        require_output(out)
    models.check_name(model)
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", suggestion(precision, [*PRECISIONS]))
    known = results.collect(model, [precision] if precision else [], store)
    content = writer.text(known, store.place, licence)
    if out is None:
        for line in content.splitlines():
            console.result(line)
    else:
        try:
            with write_atomic(out) as part:
                part.write_text(content, encoding="utf-8")
        except OSError as error:
            raise DeployError(f"{out} cannot be written: {error}", "choose another file") from error
        console.say(f"model card: {out}")
    console.document({"card": content})


COMMANDS = (card,)
