"""Files on their way to an S3 server and from it, which breaks off or changes in the middle."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.s3 import S3Server
from distillchain_store.s3.store import PART_BYTES
from distillchain_store.store import fingerprint_of
from store.gateway import Answer, Forward, Request, Rule, s3_error
from store.parts import store_behind, use_keys

pytestmark = pytest.mark.cluster
ATTEMPTS = 2  # of botocore at each part
LAST_PART = f"bytes={PART_BYTES}-"


@pytest.fixture(autouse=True)
def _keys(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch, s3)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of two parts."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(PART_BYTES + 1))
    return path


def fails_at_the_end() -> Rule:
    """The last part of a transfer is refused; the next transfer succeeds."""
    refusals = [s3_error(503, "SlowDown")] * ATTEMPTS

    def rule(request: Request, forward: Forward) -> Answer:
        is_last = "partNumber=2" in request.path or request.headers.get("range") == LAST_PART
        return refusals.pop() if is_last and refusals else forward(request)

    return rule


def test_a_transfer_that_took_longer_than_the_patience_is_repeated_all_the_same(s3: S3Server, bucket: str, large: Path):
    with store_behind(fails_at_the_end(), s3, bucket, patience_s=0.001) as (store, _):
        stored = store.upload("a", large)
        assert store.list_unfinished("") == []
    with store_behind(fails_at_the_end(), s3, bucket, patience_s=0.001) as (store, _):
        assert store.download("a", large.with_name("copy")) == stored


def test_an_answer_that_breaks_off_is_asked_for_again(s3: S3Server, bucket: str, large: Path):
    lost = [1, 1, 1]

    def rule(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        is_read = request.method == "GET" and request.key == "a"
        return replace(answer, lost_bytes=lost.pop()) if is_read and lost else answer

    with store_behind(rule, s3, bucket) as (store, _):
        stored = store.upload("a", large)
        assert store.read("a") == large.read_bytes()
        lost.append(PART_BYTES)
        assert store.fingerprint("a") == stored
        lost.append(PART_BYTES)
        assert store.download("a", large.with_name("copy")) == stored
    assert lost == []


def test_an_object_that_is_replaced_during_its_download_is_read_whole(s3: S3Server, bucket: str, large: Path):
    other = os.urandom(PART_BYTES + 2)
    before = [other]

    def rule(request: Request, forward: Forward) -> Answer:
        if request.headers.get("range") == LAST_PART and before:
            s3.client().put_object(Bucket=bucket[5:], Key="a", Body=before.pop())
        return forward(request)

    copy = large.with_name("copy")
    with store_behind(rule, s3, bucket) as (store, _):
        store.upload("a", large)
        assert store.download("a", copy) == fingerprint_of(copy)

    assert copy.read_bytes() == other


def test_a_key_that_is_listed_twice_is_one_object(s3: S3Server, bucket: str):
    def rule(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        start, end, rest = answer.body.partition(b"</Contents>")
        is_list = request.has_parameter("list-type") and end
        entry = start[start.index(b"<Contents>") :] + end if is_list else b""
        return replace(answer, body=start + end + entry + rest)

    with store_behind(rule, s3, bucket) as (store, _):
        store.write("a", b"1")
        store.write("b", b"2")
        assert [item.key for item in store.list_objects("")] == ["a", "b"]
