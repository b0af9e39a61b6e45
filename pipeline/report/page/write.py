"""Writes the report of a model to a file, as HTML or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.cache import write_atomic
from engines.errors import DeployError
from pipeline.report.page import html, markdown, results, sections
from pipeline.workflow import console
from pipeline.workflow.digests import require_output

if TYPE_CHECKING:
    from pipeline.workflow.runner import Store

# In place of a file: Markdown goes to stdout.
STDOUT = Path("-")


def write(
    model: str, precisions: Sequence[str], store: Store, page_file: Path | None, text: Path | None
) -> None:
    """Writes the report.

    Args:
        precisions: Names of the precisions to report; () means all that were exported.
        page_file: The HTML file, if one is wanted.
        text: The Markdown file, if one is wanted, or `STDOUT`.

    Raises:
        UsageError: A file's folder does not exist.
        NotAvailableError: A library that draws the page is not installed.
        DeployError: No stage has run for this model yet, or a file cannot be written.
    """
    for file in (page_file, text):
        if file not in (None, STDOUT):
            require_output(file)
    if page_file is not None:
        html.need_libraries()
    known = results.collect(model, precisions, store)
    if page_file is not None:
        page = sections.page(known, store.place)
        _write(page_file, html.text(page, known, store.root))
    if text is not None:
        content = markdown.text(known, store.place)
        if text == STDOUT:
            for line in content.splitlines():
                console.result(line)
        else:
            _write(text, content)


def _write(file: Path, content: str) -> None:
    try:
        with write_atomic(file) as part:
            part.write_text(content, encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{file} cannot be written: {error}", "choose another file") from error
    console.say(f"report: {file}")
