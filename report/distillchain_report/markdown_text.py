"""Pieces of Markdown in which text from the store stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table; an empty cell gets a space, which some renderers need."""
    lines = [head, ["---"] * len(head), *[[plain(cell) or " " for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no new line."""
    # Only characters that Markdown acts on within a line; a new line, which could start a heading, becomes a space.
    return re.sub(r"([\\`*_\[\]<>|#&~!])", r"\\\1", " ".join(text.split()))
