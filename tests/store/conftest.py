"""The stores that the same tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_store.folder import FileStore
from distillchain_store.s3.store import S3Store
from distillchain_store.store import Store
from store.parts import use_keys


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.cluster)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return FileStore(f"file://{tmp_path}/store")
    server: S3Server = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    use_keys(monkeypatch, server)
    return S3Store(f"{bucket}/some/prefix", endpoint_url=server.endpoint, region=REGION)
