"""A headless Chromium from Debian, driven by Playwright. Nothing is downloaded. conftest.py loads this plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cluster.prerequisites import ensure_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium for the tests of one module.

    Module scope: until it is closed, Playwright keeps an event loop running in this thread, and no asynchronous test
    can start its own.

    The sandbox is off. It needs user namespaces or a setuid helper, which containers lack, and the browser only opens
    pages that the tests have written.
    """
    from playwright.sync_api import sync_playwright  # imported here: it slows down the start of every test session

    program = ensure_program("chromium", "chromium-browser", packages=("chromium", "fonts-dejavu-core"))
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@contextmanager
def watched_page(browser: Browser, allowed: Callable[[str], bool], **context: Any) -> Iterator[Page]:
    """An empty page. When the block ends, fail if the page wrote to the console, got an error or made another request.

    Args:
        allowed: whether the page may request an address.
        context: arguments of Playwright's `new_context`, such as `offline` and `color_scheme`.
    """
    noise: list[str] = []
    own = browser.new_context(**context)
    page = own.new_page()
    page.on("console", lambda message: noise.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: noise.append(f"error: {error}"))
    page.on("dialog", lambda dialog: noise.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: None if allowed(request.url) else noise.append(f"request: {request.url}"))
    page.on("response", lambda got: noise.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
    try:
        yield page
    finally:
        own.close()
    assert noise == []
