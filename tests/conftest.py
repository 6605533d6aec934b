"""Fixtures that all test folders share: the cluster, the S3 server, the browser and the path of the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest_plugins = ["cluster.fixtures", "browser", "distribution"]

REPOSITORY = Path(__file__).resolve().parent.parent
MARK_OF_THE_FILE = re.compile(r"^pytestmark = \[?pytest\.mark\.(\w+)", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip a file whose mark is excluded by `-m`: importing it may load torch and transformers, which takes seconds."""
    if collection_path.suffix != ".py" or not config.option.markexpr:
        return None
    mark = MARK_OF_THE_FILE.search(collection_path.read_text())
    return bool(mark and re.search(rf"\bnot {mark[1]}\b", config.option.markexpr)) or None


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared(repository: Path) -> Path:
    """The folder `shared` beside the project, or the test is skipped."""
    folder = Path(os.environ.get("DISTILLCHAIN_SHARED") or repository.parent / "shared")
    if not (folder / "models").is_dir():
        pytest.skip(f"{folder} is not there; set DISTILLCHAIN_SHARED to the folder with models/ and data/")
    return folder
