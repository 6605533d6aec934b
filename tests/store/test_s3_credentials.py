"""Credentials: malformed ones are refused at once, expired ones are read again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.ports import free_ports
from cluster.s3 import REGION, S3Server
from distillchain_store.credential_faults import describe_fault
from distillchain_store.errors import StorageDenied, StorageUnavailable
from distillchain_store.s3.store import S3Store
from store.gateway import Answer, Forward, Request, s3_error
from store.parts import refused_at_once, store_behind, use_keys

GONE = "http://127.0.0.1:9"  # nothing listens there: a retry would show


@pytest.fixture(autouse=True)
def _no_other_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_PROFILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    "name, value, fault",
    [
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE\n", "AWS_ACCESS_KEY_ID of the environment ends with a line break"),
        ("AWS_SECRET_ACCESS_KEY", "top-secret\r\n", "AWS_SECRET_ACCESS_KEY of the environment ends with a line break"),
        ("AWS_SECRET_ACCESS_KEY", " top-secret", "AWS_SECRET_ACCESS_KEY of the environment begins with white space"),
        (
            "AWS_SESSION_TOKEN",
            "top-\nsecret",
            "AWS_SESSION_TOKEN of the environment contains a line break or another invisible character",
        ),
        ("AWS_ACCESS_KEY_ID", '"AKIAEXAMPLE"', "AWS_ACCESS_KEY_ID of the environment is in quotation marks"),
        (
            "AWS_SESSION_TOKEN",
            "top-secrèt",
            "AWS_SESSION_TOKEN of the environment contains a character that is not ASCII",
        ),
    ],
)
def test_a_malformed_credential_is_refused_at_once_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, fault: str
):
    keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "top-secret", name: value}
    for variable, content in keys.items():
        monkeypatch.setenv(variable, content)

    assert refused_at_once(GONE) == (
        f"spec.storage: {fault}, expected the value alone; write it again without that, for example with `printf %s` "
        "instead of `echo`, or with `kubectl create secret generic --from-literal` (in a pod, from the Secret that "
        "spec.storage.secretRef names)"
    )


def test_a_malformed_credential_of_a_file_is_named_with_its_source(tmp_path: Path):
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = 'top-secret'\n"
    )

    with pytest.raises(StorageDenied, match="aws_secret_access_key of shared-credentials-file is in quotation marks"):
        S3Store("s3://models/x", endpoint_url=GONE, region=REGION)


@pytest.mark.parametrize("value", ["wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY=", "with a space", "sécret", "'half", ""])
def test_a_secret_key_may_hold_any_visible_character(value: str):
    """It is never sent; some servers allow such ones."""
    assert describe_fault(value, is_header=False) is None


@pytest.mark.cluster
@pytest.mark.parametrize(
    "keys, code",
    [
        pytest.param({"AWS_SECRET_ACCESS_KEY": "not-the-right-one"}, "SignatureDoesNotMatch", id="wrong secret"),
        pytest.param({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId", id="unknown key"),
    ],
)
def test_wrong_credentials_are_reported_by_every_request(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys: dict[str, str], code: str
):
    use_keys(monkeypatch, s3, **keys)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    (tmp_path / "file").write_bytes(b"x")

    requests = [
        lambda: store.read("a"),
        lambda: store.create("a", b"x"),
        lambda: store.upload("a", tmp_path / "file"),
        lambda: store.list_objects(""),
        lambda: store.delete(["a"]),
    ]
    for request in requests:
        with pytest.raises(StorageDenied) as failure:
            request()
        assert str(failure.value).startswith(f"spec.storage: {s3.endpoint} refused {bucket} ({code}: ")
        assert str(failure.value).endswith(
            ") with the credentials from the environment (in a pod, from the Secret that spec.storage.secretRef names); "
            "correct them, or allow them to read and write there"
        )


@pytest.mark.cluster
def test_refused_credentials_of_a_file_are_reported_with_its_profile(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = nobody\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_PROFILE", "team")

    with pytest.raises(
        StorageDenied, match="with the credentials from profile team of shared-credentials-file; correct"
    ):
        S3Store(bucket, endpoint_url=s3.endpoint, region=REGION).read("a")


def test_no_credentials_at_all_are_reported():
    with pytest.raises(StorageDenied) as failure:
        S3Store("s3://models/x", endpoint_url=GONE, region=REGION).read("a")

    assert str(failure.value) == (
        "spec.storage: no credentials for s3://models/x (Unable to locate credentials); set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; in a cluster, name a Secret with these in secretRef, or give the "
        "service account a role"
    )


def test_an_empty_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "top-secret")

    with pytest.raises(StorageDenied) as failure:
        S3Store("s3://models/x", endpoint_url=GONE, region=REGION)

    assert str(failure.value) == (
        "spec.storage: AWS_ACCESS_KEY_ID of the environment (in a pod, from the Secret that spec.storage.secretRef "
        "names) is empty, expected a value"
    )


def test_a_profile_that_does_not_exist_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(
        StorageDenied, match=r"^spec\.storage: The config profile \(nobody\) could not be found; correct"
    ):
        S3Store("s3://models/x", endpoint_url=GONE, region=REGION)


EXPIRED = s3_error(400, "ExpiredToken", "The provided token has expired.")


@pytest.mark.cluster
def test_an_expired_token_is_read_again_from_where_it_came(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A mounted file of credentials, which an agent renews during the training."""
    file = tmp_path / "credentials"

    def write(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {s3.secret_key}\n")

    def rule(request: Request, forward: Forward) -> Answer:
        if f"Credential={s3.reader_key}/" in request.headers["authorization"]:
            write(s3.access_key)
            return EXPIRED
        return forward(request)

    write(s3.reader_key)
    with store_behind(rule, s3, bucket) as (store, gateway):
        store.write("a", b"x")

        assert store.read("a") == b"x"
        assert sum(s3.reader_key in request.headers["authorization"] for request in gateway.requests) == 1


@pytest.mark.cluster
@pytest.mark.parametrize("ask", ["size", "download"])
def test_an_expired_token_is_recognised_although_the_answer_to_head_has_no_body(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ask: str
):
    use_keys(monkeypatch, s3)
    expired = False

    def rule(request: Request, forward: Forward) -> Answer:
        nonlocal expired
        if not expired:
            return forward(request)
        expired = request.method == "HEAD"  # until the reason has been asked for
        return EXPIRED

    with store_behind(rule, s3, bucket) as (store, _):
        store.write("a", b"x")
        expired = True
        assert (store.size("a") if ask == "size" else store.download("a", tmp_path / "a").size_bytes) == 1


@pytest.mark.cluster
def test_a_token_that_stays_expired_is_unavailable_and_not_denied(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    """The Job's next pod may get a renewed one."""
    use_keys(monkeypatch, s3)

    with (
        store_behind(lambda *_: EXPIRED, s3, bucket, patience_s=0.1) as (store, _),
        pytest.raises(StorageUnavailable) as failure,
    ):
        store.read("a")

    assert str(failure.value) == (
        f"spec.storage: the session token for {bucket} from the environment (in a pod, from the Secret that "
        "spec.storage.secretRef names) has expired (ExpiredToken: The provided token has expired.), also after 0 s of "
        "retries; renew it there, or use a service account with a role, whose token renews itself"
    )


@contextmanager
def credentials_agent(port: int, after_s: float, **keys: str) -> Iterator[None]:
    """Answers, from `after_s` on, as the agent on a node does to pods whose service account has a role."""

    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(keys).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    def serve() -> None:
        with HTTPServer(("127.0.0.1", port), Agent) as server:
            server.timeout = 60
            server.handle_request()

    agent = threading.Timer(after_s, serve)
    agent.daemon = True
    agent.start()
    yield
    agent.join()


@pytest.mark.cluster
def test_a_late_agent_for_credentials_is_waited_for(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    """A node that has just joined starts the agent after the first pod."""
    s3.client().put_object(Bucket=bucket[5:], Key="a", Body=b"x")
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/")
    with pytest.raises(
        StorageUnavailable, match=r"^spec\.storage: the service or program that gives credentials for s3://.* gave none"
    ):
        S3Store(bucket, endpoint_url=s3.endpoint, region=REGION, patience_s=0)

    keys = {"AccessKeyId": s3.access_key, "SecretAccessKey": s3.secret_key, "Token": ""}
    with credentials_agent(port, 3.0, **keys, Expiration="2100-01-01T00:00:00Z"):
        assert S3Store(bucket, endpoint_url=s3.endpoint, region=REGION).read("a") == b"x"
