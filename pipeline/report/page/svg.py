"""Draws with matplotlib, and turns its SVG into an element that takes the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from engines.checks import import_vendor

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

# In points: less than a telephone's width, so that the text of a plot is readable there.
WIDTH = 300
_NAMESPACE = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"

# Colours that matplotlib writes, and the page's own that are put in their place.
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#0000{number:02x}" for number in range(0x10, 0x18))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--rule)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
# Markers, so that series differ without colours.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that lengths of texts are the same
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


@dataclass
class Plot:
    """A drawing in progress.

    Attributes:
        drawing: The figure to draw in.
        svg: The finished element, once the block of `plotting` has ended.
    """

    drawing: Drawing
    svg: str = ""


@contextmanager
def plotting(name: str, title: str, text: str, height: float) -> Iterator[Plot]:
    """Yields a plot to draw in, as wide as a telephone.

    The same drawing gives the same bytes: no date, and identifiers derived from `name`.

    Args:
        name: An identifier that no other plot of the page has.
        title: The short text alternative.
        text: The long one.
        height: In points.

    Raises:
        NotAvailableError: matplotlib is not installed.
    """
    import_vendor("matplotlib", "pip install matplotlib")
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.style import context

    with context(["default", {**_STYLE, "svg.hashsalt": name}]):
        drawing = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(drawing)
        plot = Plot(drawing)
        yield plot
        content = io.BytesIO()
        metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(content, format="svg", metadata=metadata, transparent=True)
    plot.svg = _element(content.getvalue(), name, title, text)


def _element(document: bytes, name: str, title: str, text: str) -> str:
    """Returns the root of an SVG document as it stands inside an HTML page."""
    root = ElementTree.fromstring(document)  # noqa: S314 - matplotlib wrote it
    referenced = {*re.findall(rb'(?:url\(|href=")#([^")]+)', document)}
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.set("viewBox", box)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-text")
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{{{_NAMESPACE}}}metadata", f"{{{_NAMESPACE}}}style"):
                parent.remove(child)  # the style would be that of the whole page
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_NAMESPACE}}}")
        if (identifier := element.get("id")) and identifier.encode() not in referenced:
            del element.attrib["id"]
        if (link := element.attrib.pop(_LINK, None)) is not None:
            element.set("href", link)
        for key, value in element.attrib.items():
            element.set(key, _with_variables(value) if key == "style" else _rounded(value))
        # The indentation: only texts have words.
        element.tail = "\n"
        if element.tag != "text":
            element.text = None
    for position, (tag, content) in enumerate((("title", title), ("desc", text))):
        described = ElementTree.Element(tag, id=f"{name}-{'title' if tag == 'title' else 'text'}")
        described.text = content
        described.tail = "\n"
        root.insert(position, described)
    return ElementTree.tostring(root, encoding="unicode")


def _rounded(numbers: str) -> str:
    """Returns coordinates with two decimals, which is finer than any screen."""
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", numbers)


def _with_variables(style: str) -> str:
    """Puts the page's colours and font in place of matplotlib's."""
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, variable)
    style = re.sub(r"font: (?:(bold|\d+) )?([\d.]+px) [^;]*", _font, style)
    return re.sub(r"font-family: [^;]*;? ?", "", style)


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
