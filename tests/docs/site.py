"""Builds the site in a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from docs.blocks import REPOSITORY

SOURCES = ("docs", "bench", "charts", "CHANGELOG.md", "mkdocs.yml")


def a_copy(folder: Path) -> Path:
    for name in SOURCES:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    zensical = str(Path(sys.executable).parent / "zensical")
    return subprocess.run([zensical, "build", "--strict"], cwd=folder, capture_output=True, text=True, check=False)


def built_site(folder: Path) -> Path:
    """Build the site below `folder` and return the folder with its pages."""
    built = build(a_copy(folder))
    assert built.returncode == 0, built.stderr
    return folder / "site"
