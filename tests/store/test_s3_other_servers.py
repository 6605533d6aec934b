"""Servers that differ from AWS: a gateway in front of the real server refuses, lacks or delays what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.s3 import S3Server
from distillchain_store import commit
from distillchain_store.errors import StorageDenied, StorageUnavailable
from distillchain_store.s3.store import PART_BYTES, S3Store
from distillchain_store.store import discard
from store.gateway import Answer, Forward, Request, s3_error
from store.parts import DIGEST, a_manifest, store_behind, use_keys

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _keys(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch, s3)
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION", raising=False)


def has_checksum(request: Request) -> bool:
    return any(name.startswith("x-amz-checksum") for name in request.headers)


def refuses_deletes_of_many(answer: Answer) -> Callable[[Request, Forward], Answer]:
    return lambda request, forward: answer if request.deletes_many else forward(request)


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(
            s3_error(400, "MissingContentMD5", "Missing required header for this request: Content-Md5"), id="md5"
        ),
        pytest.param(s3_error(501, "NotImplemented", "A header you provided is not implemented"), id="checksum header"),
        pytest.param(Answer(501, b"no such request"), id="not XML"),
        pytest.param(s3_error(405, "MethodNotAllowed"), id="no such method"),
        pytest.param(s3_error(403, "SignatureDoesNotMatch"), id="query parameter not signed"),
    ],
)
def test_objects_are_deleted_one_by_one_where_many_are_refused(s3: S3Server, bucket: str, refusal: Answer):
    with store_behind(refuses_deletes_of_many(refusal), s3, bucket) as (store, gateway):
        for key in ("a/1", "a/2", "b"):
            store.write(key, b"x")

        assert discard(store, "a/") is None
        assert [item.key for item in store.list_objects("")] == ["b"]

        gateway.requests.clear()
        store.delete(["b"])
        assert [request.method for request in gateway.requests] == ["DELETE"], "the refusal was not remembered"


def test_objects_that_cannot_be_deleted_are_reported_before_any_work(s3: S3Server, bucket: str):
    def rule(request: Request, forward: Forward) -> Answer:
        deletes = request.deletes_many or request.method == "DELETE"
        return s3_error(403, "AccessDenied", "no deletes") if deletes else forward(request)

    with store_behind(rule, s3, bucket) as (store, gateway):
        leftover = commit.prove(store, DIGEST, "first")

    key = f"stages/{DIGEST}/attempts/first/store-check"
    assert leftover == (
        f"objects under {bucket}/{key} could not be deleted and stay there (spec.storage: {gateway.endpoint} "
        f"refused {bucket} (AccessDenied: no deletes) with the credentials from the environment (in a pod, from the "
        "Secret that spec.storage.secretRef names); correct them, or allow them to read and write there)"
    )


@pytest.mark.parametrize("answers", [["gone"], ["busy", "gone"]])
def test_a_key_that_is_busy_or_gone_among_many_is_no_failure(s3: S3Server, bucket: str, answers: list[str]):
    codes = {"gone": "NoSuchKey", "busy": "InternalError"}

    def rule(request: Request, forward: Forward) -> Answer:
        return deleted(codes[answers.pop(0)]) if request.deletes_many else forward(request)

    with store_behind(rule, s3, bucket) as (store, _):
        store.delete(["a", "b"])

    assert answers == [], "a key that is busy is asked for again"


def test_a_refused_key_among_many_is_reported_and_not_tried_again(s3: S3Server, bucket: str):
    """AWS answers the whole request with 200 and names the refused key in the body."""

    def rule(request: Request, forward: Forward) -> Answer:
        return deleted("AccessDenied")

    with (
        store_behind(rule, s3, bucket) as (store, gateway),
        pytest.raises(
            StorageDenied, match=r"^spec\.storage: .* \(AccessDenied: words\) with the credentials from the environment"
        ),
    ):
        store.delete(["a", "b"])

    assert len(gateway.requests) == 1


def deleted(code: str) -> Answer:
    error = f"<Error><Key>a</Key><Code>{code}</Code><Message>words</Message></Error>"
    return Answer(200, f"<DeleteResult>{error}</DeleteResult>".encode())


def test_a_listing_that_lags_breaks_no_commit(s3: S3Server, bucket: str, tmp_path: Path):
    """New objects can be read at once, but are listed only later."""

    def rule(request: Request, forward: Forward) -> Answer:
        return Answer(200, b"<ListBucketResult/>") if request.has_parameter("list-type") else forward(request)

    (tmp_path / "weights").write_bytes(b"w")
    with store_behind(rule, s3, bucket) as (store, _):
        assert store.list_objects("") == []
        commit.prove(store, DIGEST, "first")
        commit.upload_attempt(store, DIGEST, "first", tmp_path)
        winner = commit.commit(store, a_manifest("first", files={"weights": b"w"}))

    assert winner.attempt == "first"


def test_a_listing_that_is_cut_off_is_refused(s3: S3Server, bucket: str):
    """As by a server that has only the first version of the request, which goes on with a marker."""

    def rule(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        return replace(answer, body=answer.body.replace(b"IsTruncated>false<", b"IsTruncated>true<"))

    with store_behind(rule, s3, bucket) as (store, gateway):
        store.write("a", b"1")
        with pytest.raises(StorageDenied, match=f"^spec.storage.endpointUrl: {gateway.endpoint} lists only 1 objects"):
            store.list_objects("")


def test_a_listing_that_never_ends_is_not_s3(s3: S3Server, bucket: str):
    end, again = b"<IsTruncated>false", b"<NextContinuationToken>again</NextContinuationToken><IsTruncated>true"

    def rule(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        return replace(answer, body=answer.body.replace(end, again))

    with (
        store_behind(rule, s3, bucket, patience_s=0) as (store, gateway),
        pytest.raises(StorageUnavailable, match=f"the answer of {gateway.endpoint} is not S3"),
    ):
        store.list_objects("")


def test_a_failed_upload_leaves_nothing_where_listings_lag(s3: S3Server, bucket: str, tmp_path: Path):
    def rule(request: Request, forward: Forward) -> Answer:
        if request.has_parameter("list-type"):
            return Answer(200, b"<ListBucketResult/>")
        return s3_error(400, "InvalidRequest") if request.is_upload and request.key.endswith("/z") else forward(request)

    for name in ("a", "z"):
        (tmp_path / name).write_bytes(b"w")
    with store_behind(rule, s3, bucket) as (store, _), pytest.raises(StorageDenied):
        commit.upload_attempt(store, DIGEST, "first", tmp_path)

    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket[5:])


def locks_objects(request: Request, forward: Forward) -> Answer:
    """As a bucket with Object Lock: every upload needs a checksum."""
    if request.is_upload and "content-md5" not in request.headers and not has_checksum(request):
        return s3_error(400, "InvalidRequest", LOCKED)
    return forward(request)


LOCKED = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"


def locks_objects_and_wants_a_newer_checksum(request: Request, forward: Forward) -> Answer:
    """Also when the object is sent in parts: then the whole upload is declared with its kind of checksum."""
    if request.is_upload and not has_checksum(request):
        return s3_error(400, "InvalidRequest", LOCKED)
    return forward(request)


def knows_no_checksum_headers(request: Request, forward: Forward) -> Answer:
    if has_checksum(request) or "x-amz-sdk-checksum-algorithm" in request.headers:
        return s3_error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
    return forward(request)


@pytest.mark.parametrize("setting", [None, "when_required", "when_supported"])
@pytest.mark.parametrize("rule", [locks_objects, locks_objects_and_wants_a_newer_checksum, knows_no_checksum_headers])
def test_uploads_carry_the_checksum_that_the_store_takes(
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: Callable[[Request, Forward], Answer],
    setting: str | None,
):
    if setting:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
    (tmp_path / "large").write_bytes(b"x" * (PART_BYTES + 1))

    with store_behind(rule, s3, bucket) as (store, gateway):
        store.upload("large", tmp_path / "large")
        assert store.create("a", b"first")
        assert not store.create("a", b"second")
        store.write("b", b"")
        refused = sum(request.is_upload for request in gateway.requests)
        store.write("b", b"x")
        assert sum(request.is_upload for request in gateway.requests) == refused + 1, "what works was not remembered"

    assert store.size("large") == PART_BYTES + 1
    assert (store.read("a"), store.read("b")) == (b"first", b"x")


def test_the_users_setting_for_checksums_is_respected(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    with store_behind(lambda request, forward: forward(request), s3, bucket) as (store, gateway):
        store.write("a", b"x")
        assert not has_checksum(gateway.requests[-1])

        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        S3Store(bucket, endpoint_url=gateway.endpoint, region="us-east-1").write("a", b"x")
        assert "x-amz-checksum-crc32" in gateway.requests[-1].headers


def test_a_store_that_takes_no_checksum_at_all_is_refused(s3: S3Server, bucket: str):
    def rule(request: Request, forward: Forward) -> Answer:
        return s3_error(400, "InvalidRequest", LOCKED)

    with (
        store_behind(rule, s3, bucket) as (store, _),
        pytest.raises(StorageDenied, match=r"Object Lock parameters\); check"),
    ):
        store.write("a", b"x")


def test_a_store_that_replaces_a_commit_is_refused(s3: S3Server, bucket: str):
    """As a server that does not know If-None-Match, and answers as if there was no condition."""

    def rule(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        return Answer(200) if answer.status == 412 else answer

    with store_behind(rule, s3, bucket) as (store, _):
        with pytest.raises(StorageDenied) as failure:
            commit.prove(store, DIGEST, "first")
        assert store.list_objects("") == []

    assert str(failure.value) == (
        f"spec.storage.uri: {bucket} lets a second writer replace what a first one wrote, in spite of If-None-Match, so "
        "two pods could commit one stage; use a store with conditional writes, such as AWS S3 or SeaweedFS"
    )


@pytest.mark.parametrize(
    "answer, kind, want",
    [
        (
            Answer(202, b"<html><p>Log in"),
            StorageUnavailable,
            "the answer of {0} is not S3, also after 0 s of retries; ",
        ),
        (
            Answer(404, b"<html/>"),
            StorageDenied,
            "{0} answered 404 for {1}; check that this is the address of an S3 server",
        ),
    ],
)
def test_an_address_where_no_s3_is_served_is_named(
    s3: S3Server, bucket: str, answer: Answer, kind: type[Exception], want: str
):
    """As of a login page, or of a console on another port of the same server."""
    with store_behind(lambda *_: answer, s3, bucket, patience_s=0) as (store, gateway):
        for request in (lambda: store.list_objects(""), lambda: store.write("a", b"x")):
            with pytest.raises(kind) as failure:
                request()
            message = want.format(gateway.endpoint, bucket)
            assert str(failure.value).startswith(f"spec.storage.endpointUrl: {message}")


def test_an_answer_without_the_headers_of_s3_is_named(s3: S3Server, bucket: str, tmp_path: Path):
    """As of a proxy that answers 200 itself."""
    large = tmp_path / "large"
    large.write_bytes(bytes(PART_BYTES))

    def rule(request: Request, forward: Forward) -> Answer:
        return Answer(200) if request.method == "HEAD" or request.has_parameter("partNumber") else forward(request)

    with store_behind(rule, s3, bucket, patience_s=0) as (store, gateway):
        for ask in (lambda: store.size("a"), lambda: store.upload("a", large)):
            with pytest.raises(StorageUnavailable, match=f"the answer of {gateway.endpoint} is not S3"):
                ask()
