"""Parts of the store's tests: credentials, a store behind a gateway, and a manifest without a training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_api.wire.manifest import FileEntry, Manifest, Metrics, ModelFacts, RunFacts, SplitFacts
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_store.errors import StorageDenied
from distillchain_store.s3.store import S3Store
from store.gateway import Gateway, Rule

DIGEST = "d" * 64


def use_keys(monkeypatch: pytest.MonkeyPatch, server: S3Server, **others: str) -> None:
    """Gives this process credentials, as a trainer's environment has them."""
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key, **others}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)


@contextmanager
def store_behind(rule: Rule, s3: S3Server, bucket: str, *, patience_s: float = 20) -> Iterator[tuple[S3Store, Gateway]]:
    """A store whose requests pass through a gateway with that rule."""
    with Gateway(s3.endpoint, rule) as gateway:
        yield S3Store(bucket, endpoint_url=gateway.endpoint, region=REGION, patience_s=patience_s), gateway


def refused_at_once(endpoint: str) -> str:
    """The message of a refusal, after which no request may be repeated."""

    def read() -> None:
        store = S3Store("s3://models/x", endpoint_url=endpoint, region=REGION)
        store.patience = lambda: pytest.fail("a request was about to be repeated")
        store.read("a")

    with pytest.raises(StorageDenied) as failure:
        read()
    return str(failure.value)


def a_manifest(attempt: str = "first", *, files: dict[str, bytes] | None = None) -> Manifest:
    """The commit of stage DIGEST with these files."""
    entries = [
        FileEntry(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in (files or {}).items()
    ]
    student = ModelFacts(
        source="s3://b/x",
        revision="sha256:0",
        parameters=1,
        size_bytes=1,
        metrics=Metrics(validation={"accuracy": 0.9}),
    )
    run = RunFacts(
        started_at="2026-01-01T12:00:00Z",
        elapsed_s=1,
        model_s=1,
        examples_per_second=1,
        steps=1,
        final_loss=0.1,
        logits_reused=False,
        resumed=False,
    )
    return Manifest(
        digest=DIGEST,
        chain="ml/small",
        stage="small",
        attempt=attempt,
        checkpoint=f"s3://b/stages/{DIGEST}/attempts/{attempt}",
        files=entries,
        student=student,
        pretrained=False,
        start="architecture:bert",
        data_revision="sha256:0",
        data={"validation": SplitFacts(rows=1, sha256="0" * 64)},
        recipe={},
        run=run,
        environment={},
        committed_at="2026-01-01T12:00:00Z",
    )


def a_pass() -> PassManifest:
    """The commit of pass DIGEST."""
    student = a_manifest()
    return PassManifest(
        digest=DIGEST,
        chain="ml/small",
        stage="small-pass",
        attempt="first",
        files=[],
        teacher=student.student,
        teacher_files="a" * 64,
        data=student.data,
        rows=1,
        logits="b" * 64,
        elapsed_s=1,
        examples_per_second=1,
        environment={},
        committed_at="2026-01-01T12:00:00Z",
    )
