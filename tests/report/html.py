"""Reads a page as a browser would, without one."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements, ids and visible words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def ids(self) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get("id"))]

    def tables(self, css_class: str) -> int:
        """Number of tables that have a CSS class."""
        return sum(
            tag == "table" and css_class in (attributes.get("class") or "").split() for tag, attributes in self.elements
        )
