"""The site in a browser: every page opens without a message on the console, and search works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from browser import watched_page
from docs.site import built_site

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

PHONE_PX = 420


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print no access log."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of the built site, served on the loopback address."""
    folder = built_site(tmp_path_factory.mktemp("site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture
def page(browser: Browser, site: tuple[str, Path]) -> Iterator[Page]:
    """A page. At the end of the test it fails on requests to other hosts, missing files and console messages."""
    with watched_page(browser, lambda asked: asked.startswith(site[0])) as opened:
        yield opened


def test_every_page_opens_and_fits_a_phone(site: tuple[str, Path], page: Page):
    """Only tables and code scroll sideways."""
    address, folder = site
    pages = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("index.html"))
    assert len(pages) > 20
    page.set_viewport_size({"width": PHONE_PX, "height": 800})
    for name in pages:
        page.goto(f"{address}/{name}/" if name != "." else f"{address}/")
        assert page.locator("h1").count() == 1, name
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE_PX, name


def test_search_finds_a_page(site: tuple[str, Path], page: Page):
    address, _ = site
    page.goto(address)
    page.keyboard.press("/")
    page.keyboard.type("CheckpointCorrupt")
    page.locator("a:visible", has_text="Troubleshooting").first.wait_for()
