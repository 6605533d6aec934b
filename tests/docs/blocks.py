"""The fenced blocks and links of README.md and docs/, with page and line. Parses Markdown; does not run anything."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<inline>[^)\s]+)\)|<(?P<bare>https?://[^>\s]+)>")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path within the repository.
        indent: number of spaces before the fence.
        language: the word after the fence.
    """

    page: str
    line: int
    indent: int
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """Page and first line: the key of the block in the catalogue."""
        return self.page, self.text.splitlines()[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README.md, all pages of the site, and the page that docs/chart.md includes."""
    return [
        "README.md",
        "charts/distillchain/README.md",
        *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md")),
    ]


def blocks(*languages: str, page: str | None = None) -> list[Block]:
    """All blocks by page and line, optionally of some languages or one page only."""
    found = [block for name in ([page] if page else pages()) for block in blocks_of(name, _read(name))]
    return [block for block in found if not languages or block.language in languages]


def blocks_of(page: str, text: str) -> list[Block]:
    """The blocks of one page's text."""
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            indent=len(match["indent"]),
            language=match["language"],
            text=textwrap.dedent(match["text"]),
        )
        for match in _FENCE.finditer(text)
    ]


def links(page: str) -> list[str]:
    """Targets of all links and images of a page, except in code."""
    prose = re.sub(r"`[^`\n]+`", "", _FENCE.sub("", _read(page)))
    return [match["inline"] or match["bare"] for match in _LINK.finditer(prose)]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, and those that it sets itself."""
    text = _FENCE.sub("", _read(page))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    own = set(re.findall(r'<a id="([^"]+)"', text))
    return own | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _read(page: str) -> str:
    return (REPOSITORY / page).read_text()
