"""A real browser: Debian's Chromium, headless, driven by Playwright; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PACKAGE = "chromium"


class BrowserMissing(Exception):
    """There is no Chromium, and how it comes here."""


def ensure_chromium() -> Path:
    """Its program; on Debian as root it is installed when it is missing. Raises: BrowserMissing."""
    if _find() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
    found = _find()
    if found is None:
        raise BrowserMissing(
            f"the report's tests need Chromium, which is not on this machine; as root: apt-get install {PACKAGE}"
        )
    return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser for a test session.

    Without its sandbox: that wants user namespaces or a setuid helper, which containers lack, and it only opens pages
    that the tests have just made.
    """
    program = ensure_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def _find() -> Path | None:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return Path(found) if found else None


def _install() -> None:
    print(f"report: installing {PACKAGE}", file=sys.stderr, flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (
        ["update", "-qq"],
        ["install", "-qq", "--yes", "--no-install-recommends", PACKAGE, "fonts-dejavu-core"],
    ):
        done = subprocess.run(["apt-get", *words], env=quiet, text=True, capture_output=True, check=False)
        if done.returncode != 0 and words[0] == "install":  # an update that half fails may still be enough
            raise BrowserMissing(f"`apt-get {' '.join(words)}` failed: {done.stderr.strip()}")
