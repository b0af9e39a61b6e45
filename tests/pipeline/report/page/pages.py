"""Reads pages: their elements, texts and tables; changes the results that they show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from pipeline.workflow.runner import Store

# Elements that have no end tag, in HTML.
_VOID = frozenset({"br", "link", "meta", "img", "input", "hr"})


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.walk() if element.tag in tags]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Element:
    """Returns the root of a page, whose elements must be closed in the order they are opened."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert builder.open == [builder.root], "an element is not closed"
    return builder.root


def cells(root: Element) -> list[str]:
    """Returns the texts of all cells of all tables."""
    return [cell.text for table in root.all("table") for cell in table.all("th", "td")]


def rewrite(store: Store, file: str, record: str, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file, and its digest in the record, as another version would have made it."""
    content = change(json.loads((store.root / file).read_text()))
    (store.root / file).write_text(json.dumps(content))
    digest = hashlib.sha256((store.root / file).read_bytes()).hexdigest()
    recorded = json.loads((store.root / record).read_text())
    recorded["outputs"][file]["sha256"] = digest
    (store.root / record).write_text(json.dumps(recorded))
