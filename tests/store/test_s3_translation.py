"""Answers of an S3 server, as messages to the user: which field can correct it, and whether retrying may help."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from cluster.s3 import REGION
from distillchain_store.errors import ObjectMissing, StorageDenied, StorageUnavailable, StoreError
from distillchain_store.s3.answer import CredentialsExpired, Transient
from distillchain_store.s3.store import S3Store
from distillchain_store.s3.translation import Address, translate, wants_other_checksum

NOON = datetime.datetime(2026, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
ADDRESS = Address("s3://models/x", "models", "http://s3.test", "spec.teacher.model", "the environment")


def an_error(code: str, status: int = 400, message: str = "words", **more: Any) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message, **more.pop("error", {})},
        "ResponseMetadata": {"HTTPStatusCode": status, **more},
    }
    return ClientError(response, "GetObject")


def translated(error: ClientError) -> StoreError:
    found = translate(error, ADDRESS, "k", now=NOON)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "error, kind, want",
    [
        pytest.param(an_error("NoSuchBucket", 404), StorageDenied, "spec.teacher.model: http://s3.test has no bucket models; create it or correct the name", id="bucket"),
        pytest.param(an_error("NoSuchKey", 404), ObjectMissing, "s3://models/x/k: no such object", id="object"),
        pytest.param(an_error("InvalidAccessKeyId", 403), StorageDenied, "spec.storage: http://s3.test refused s3://models/x (InvalidAccessKeyId: words) with the credentials from the environment; correct them, or allow them to read and write there", id="credentials"),
        pytest.param(an_error("PermanentRedirect", 301), StorageDenied, "spec.storage.region: bucket models is in another region (PermanentRedirect: words); name that region", id="region"),
        pytest.param(an_error("TemporaryRedirect", 307), StorageDenied, "spec.storage.region: bucket models is in another region (TemporaryRedirect: words); name that region", id="region of a new bucket"),
        pytest.param(an_error("SecondLevelDomainForbidden", 403), StorageDenied, "spec.storage.endpointUrl: http://s3.test wants the bucket in the name of the host (SecondLevelDomainForbidden: words); write `addressing_style = virtual` below `s3 =` into the file that AWS_CONFIG_FILE names", id="no path style"),
        pytest.param(an_error("InvalidObjectState", 403), StorageDenied, "s3://models/x/k was moved to an archive (InvalidObjectState: words), perhaps by a lifecycle rule of bucket models; restore it, and exempt s3://models/x from the rule", id="archived"),
        pytest.param(an_error("InvalidRequest"), StorageDenied, "spec.storage: http://s3.test refused the request for s3://models/x/k (InvalidRequest: words); check the store's rules for this bucket", id="refused for another reason"),
        pytest.param(an_error("501", 501, "Not Implemented"), StorageDenied, "spec.storage: http://s3.test does not support a request that a commit needs (501: Not Implemented); use another store", id="not supported"),
        pytest.param(an_error("SlowDown", 503), Transient, "spec.storage.endpointUrl: http://s3.test could not handle the request for s3://models/x/k (SlowDown: words); check the store", id="busy"),
        pytest.param(an_error("QuotaExceeded", 403), Transient, "spec.storage: http://s3.test has no space left for s3://models/x (QuotaExceeded: words); raise the quota of bucket models, or free space there (distillchain gc)", id="quota"),
        pytest.param(an_error("ExpiredToken"), CredentialsExpired, "spec.storage: the session token for s3://models/x from the environment has expired (ExpiredToken: words); renew it there, or use a service account with a role, whose token renews itself", id="expired token"),
    ],
)  # fmt: skip
def test_an_answer_becomes_a_message_that_names_the_field_to_correct(error: ClientError, kind: type, want: str):
    found = translated(error)

    assert type(found) is kind
    assert str(found) == want


@pytest.mark.parametrize(
    "code, status",
    [("BadDigest", 400), ("NoSuchUpload", 404), ("IncompleteBody", 400), ("409", 409), ("502", 502), ("Odd", 200)],
)
def test_what_may_pass_is_retried(code: str, status: int):
    assert isinstance(translated(an_error(code, status)), StorageUnavailable)


@pytest.mark.parametrize(
    "more, clocks",
    [
        pytest.param(
            {"error": {"ServerTime": "2026-01-01T12:20:00Z"}},
            "this machine's clock shows 2026-01-01T12:00:00Z, the store's 2026-01-01T12:20:00Z: 1200 s apart",
            id="in the answer",
        ),
        pytest.param(
            {"HTTPHeaders": {"date": "Thu, 01 Jan 2026 11:00:00 GMT"}},
            "this machine's clock shows 2026-01-01T12:00:00Z, the store's 2026-01-01T11:00:00Z: 3600 s apart",
            id="in its headers",
        ),
        pytest.param(
            {}, "this machine's clock shows 2026-01-01T12:00:00Z, the store does not say its time", id="nowhere"
        ),
    ],
)
def test_clocks_that_differ_are_shown_with_both_times_and_may_pass(more: dict[str, Any], clocks: str):
    found = translated(an_error("RequestTimeTooSkewed", 403, **more))

    assert isinstance(found, StorageUnavailable)
    assert str(found) == (
        f"spec.storage: http://s3.test refused s3://models/x because the clocks differ (RequestTimeTooSkewed): {clocks}; "
        "correct the clock that is wrong, for example with NTP"
    )


@pytest.mark.parametrize(
    "error, sent, want",
    [
        (an_error("InvalidRequest", message="Content-MD5 OR x-amz-checksum- HTTP header is required"), False, True),
        (an_error("MissingContentMD5"), False, True),
        (an_error("InvalidArgument", message="Unsupported header 'x-amz-checksum-crc32' received"), True, True),
        (an_error("NotImplemented", 501), True, True),
        (an_error("NotImplemented", 501), False, False),
        (an_error("BadDigest", message="The Content-MD5 you specified did not match what we received."), True, False),
        (an_error("AccessDenied", 403), True, False),
    ],
)
def test_only_a_refusal_of_its_checksum_makes_an_upload_try_another(error: ClientError, sent: bool, want: bool):
    assert wants_other_checksum(error, sent=sent) is want


OUTSIDE = (
    "its address is known only within the cluster: forward its port (kubectl port-forward), set AWS_ENDPOINT_URL_S3 to the "
    "forwarded address, and name the store with --storage"
)
ANYWHERE = "check the address and the network"


@pytest.mark.parametrize(
    "host, in_pod, remedy",
    [
        ("minio.store.svc", False, OUTSIDE),
        ("minio.store.svc.cluster.local", False, OUTSIDE),
        ("minio.store.svc", True, ANYWHERE),
        ("s3.svcs.test", False, ANYWHERE),
    ],
)
def test_an_address_of_a_cluster_gets_another_remedy_outside_of_it(
    monkeypatch: pytest.MonkeyPatch, host: str, in_pod: bool, remedy: str
):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    error = EndpointConnectionError(endpoint_url=f"http://{host}:9000")

    found = translate(error, replace(ADDRESS, endpoint=f"http://{host}:9000"), "k", now=NOON)

    assert str(found) == (
        f"spec.storage.endpointUrl: http://{host}:9000 did not answer (EndpointConnectionError); {remedy}"
    )


@pytest.mark.parametrize(
    "endpoint", ["http://bob:top-secret@s3.test", "http://bob:top-secret@ s3.test", "bob:top-secret@s3.test"]
)
def test_a_password_in_the_endpoint_is_not_shown(endpoint: str):
    """All but the first are refused by botocore, which quotes them."""
    try:
        store = S3Store("s3://models/x", endpoint_url=endpoint, region=REGION)
        found = str(translate(an_error("SlowDown", 503), store._address(), "k", now=NOON))
    except StorageDenied as error:
        found = str(error)

    assert "s3.test" in found
    assert "bob" not in found
    assert "top-secret" not in found
