"""Fixtures of all rooms: the cluster, the S3 server, the repository's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["cluster.fixtures", "browser"]

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY
