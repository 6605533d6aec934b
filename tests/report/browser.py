"""A real browser: Debian's Chromium, headless, driven by Playwright; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from cluster.prerequisites import ensure_program


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser for a test session.

    Without its sandbox: that wants user namespaces or a setuid helper, which containers lack, and it only opens pages
    that the tests have just made.
    """
    program = ensure_program("chromium", "chromium-browser", packages=("chromium", "fonts-dejavu-core"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
