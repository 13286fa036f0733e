"""Reads a report's HTML for tests: elements with their attributes and texts, over the standard library's parser."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser

from PIL import Image

EMPTY = {"meta", "link", "img", "rect", "br"}


@dataclass
class Element:
    """A tag, its attributes, all text in it, and the tags around it."""

    tag: str
    attributes: dict[str, str]
    around: tuple[str, ...]
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its words, with one space between them."""
        return " ".join(" ".join(self.texts).split())


class Reader(HTMLParser):
    """The elements of a document, in order; AssertionError where tags do not close as they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        self.close()
        assert [element.tag for element in self.open] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        around = tuple(element.tag for element in self.open)
        element = Element(tag, {name: value or "" for name, value in attrs}, around)
        self.elements.append(element)
        if tag not in EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open and self.open[-1].tag == tag, f"</{tag}> closes {[one.tag for one in self.open]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.texts.append(data)

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def ids(self) -> list[str]:
        return [element.attributes["id"] for element in self.elements if "id" in element.attributes]

    def by_id(self, name: str) -> Element:
        (found,) = [element for element in self.elements if element.attributes.get("id") == name]
        return found

    def pictures(self) -> list[Image.Image]:
        """The pictures, decoded; every one is part of the file."""
        sources = [element.attributes["src"] for element in self.all("img")]
        head = "data:image/png;base64,"
        assert all(source.startswith(head) for source in sources)
        opened: list[Image.Image] = [
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix(head)))) for source in sources
        ]
        for picture in opened:
            picture.load()
        return opened
