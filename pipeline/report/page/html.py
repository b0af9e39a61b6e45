"""Writes a page as one HTML file that asks for no other."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from engines.checks import import_vendor
from pipeline import __version__
from pipeline.report.page.sections import Page, all_sections
from pipeline.report.train import describe

if TYPE_CHECKING:
    from markupsafe import Markup

    from pipeline.report.page.results import Results

_COMMAND = re.compile(r"`([^`]+)`")
INSTALL = "pip install jinja2 matplotlib"


def need_libraries() -> None:
    """Checks that the libraries of a page are installed.

    Raises:
        NotAvailableError: One is not installed; the hint is the pip line.
    """
    for module in ("jinja2", "matplotlib"):
        import_vendor(module, INSTALL)


def text(page: Page, results: Results, root: Path) -> str:
    """Returns the HTML of a page: the same for the same content.

    Args:
        root: The folder of the records.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["prose"] = _prose
    template = environment.from_string(_file("template.html"))
    return template.render(
        version=__version__,
        model=results.model,
        subtitle=_subtitle(results),
        sections=all_sections(page),
        style=Markup(_file("style.css")),  # noqa: S704 - a file of ours
        root=str(root),
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _prose(words: str) -> Markup:
    """Returns a sentence as HTML, with what stands between backquotes as code."""
    from markupsafe import Markup, escape

    parts = _COMMAND.split(words)
    codes = [Markup("<code>{}</code>").format(part) for part in parts[1::2]]
    return Markup("").join(
        part for pair in zip(map(escape, parts[::2]), [*codes, ""], strict=True) for part in pair
    )


def _subtitle(results: Results) -> str:
    """Returns accuracy, precisions, and when the results were made."""
    started = sorted(record.started for record in results.records.values())
    days = dict.fromkeys(entry[:10] for entry in (started[0], started[-1]))
    parts = [] if results.training is None else [_described(results.training)]
    names = ", ".join(part.name for part in results.precisions)
    return "; ".join(
        [*parts, *([f"in {names}"] if names else []), f"results of {' to '.join(days)}"]
    )


def _described(training: dict[str, object]) -> str:
    from pipeline.report.page.results import UNREADABLE

    try:
        return describe(training)
    except UNREADABLE:
        return "training of another version"
