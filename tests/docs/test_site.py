"""The site of `make docs`: it builds without warnings, loads nothing from other hosts, and has search and two schemes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.blocks import pages
from docs.site import a_copy, build, built_site


class _Loaded(HTMLParser):
    """Collects what a browser loads when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "object"):
            self.urls += [attributes.get("src") or attributes.get("data") or ""]
        if tag == "link" and attributes.get("rel") != "canonical":
            self.urls += [attributes.get("href") or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_site(tmp_path_factory.mktemp("site"))


def test_every_page_is_built(site: Path):
    missing = []
    for page in (name for name in pages() if name.startswith("docs/")):
        name = page.removeprefix("docs/").removesuffix(".md")
        folder = name.removesuffix("README").removesuffix("index").rstrip("/")
        if not (site / folder / "index.html").exists():
            missing.append(page)

    assert missing == []


def test_a_page_loads_nothing_from_other_hosts(site: Path):
    foreign = {}
    for page in site.rglob("*.html"):
        reader = _Loaded()
        reader.feed(page.read_text())
        foreign[str(page.relative_to(site))] = [url for url in reader.urls if re.match(r"(https?:)?//", url)]
    styles = [text for sheet in site.rglob("*.css") for text in re.findall(r"url\(([^)]+)\)", sheet.read_text())]

    assert {name: urls for name, urls in foreign.items() if urls} == {}
    assert [url for url in styles if re.match(r"['\"]?(https?:)?//", url)] == []
    assert len(foreign) > 15


def test_no_page_uses_mermaid(site: Path):
    assert [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()] == []


def test_pages_of_other_folders_are_included(site: Path):
    assert "Log of measurements" in (site / "measurements" / "index.html").read_text()
    assert "watchNamespaces" in (site / "chart" / "index.html").read_text()
    assert "Unreleased" in (site / "changelog" / "index.html").read_text()


def test_the_search_index_contains_the_operations_page(site: Path):
    assert "kstatus" in (site / "search.json").read_text()


def test_the_site_has_a_light_and_a_dark_scheme(site: Path):
    schemes = re.findall(r'data-md-color-scheme="(\w+)"', (site / "index.html").read_text())

    assert {"default", "slate"} <= set(schemes)


def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path):
    folder = a_copy(tmp_path)
    (folder / "docs" / "index.md").write_text("[a](gone.md)\n[b](limits.md#gone)\n")

    built = build(folder)

    assert built.returncode != 0
    assert "2 issues found" in built.stderr
