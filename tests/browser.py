"""A real browser: Debian's Chromium, headless, driven by Playwright; nothing is downloaded. conftest.py loads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from cluster.prerequisites import ensure_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with its module: Playwright leaves an event loop running in this thread until then, in which no other
    asynchronous test can start its own.

    Without its sandbox: that wants user namespaces or a setuid helper, which containers lack, and it only opens pages
    that the tests have just made.
    """
    from playwright.sync_api import sync_playwright  # costs every test session a moment

    program = ensure_program("chromium", "chromium-browser", packages=("chromium", "fonts-dejavu-core"))
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()
