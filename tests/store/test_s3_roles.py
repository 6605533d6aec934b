"""Credentials that a role, a login or a program gives, and what a user reads when it gives none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distillchain_store.errors import StorageDenied, StorageUnavailable, StoreError
from distillchain_store.s3.store import S3Store
from store.gateway import Answer, Gateway

S3 = "http://127.0.0.1:9"
ROLE = "arn:aws:iam::123456789012:role/trainer"
BASE = "[profile base]\naws_access_key_id = a\naws_secret_access_key = b\n"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file of AWS, whose profile `p` is in use."""
    path = tmp_path / "config"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.setenv("AWS_PROFILE", "p")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore itself, which waits before it repeats a request
    return path


def failure_of_a_read() -> StoreError:
    with pytest.raises(StoreError) as failure:
        S3Store("s3://models/x", endpoint_url=S3, region="us-east-1", patience_s=0).read("a")
    return failure.value


def sts_error(code: str, status: int) -> Answer:
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>words</Message></Error></ErrorResponse>"
    return Answer(status, body.encode(), {"Content-Type": "text/xml"})


@pytest.mark.parametrize(
    "code, status, kind, remedy",
    [
        ("AccessDenied", 403, StorageDenied, "; correct the role, which the service account or profile names, or the role's trust policy"),
        ("InvalidIdentityToken", 400, StorageDenied, "; correct the role, which the service account or profile names, or the role's trust policy"),
        ("ExpiredTokenException", 400, StorageUnavailable, ", also after 0 s of retries; log in again; in a pod, check that the kubelet renews the token of its volume"),
        ("IDPCommunicationError", 400, StorageUnavailable, ", also after 0 s of retries; check the network and the role's identity provider"),
        ("TooManyRequestsException", 429, StorageUnavailable, ", also after 0 s of retries; check the network and the role's identity provider"),
    ],
)  # fmt: skip
def test_a_role_that_aws_does_not_give_is_no_fault_of_the_store(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int, kind: type, remedy: str
):
    (tmp_path / "token").write_text("of the service account")
    config.write_text(f"[profile p]\nrole_arn = {ROLE}\nweb_identity_token_file = {tmp_path}/token\n")
    with Gateway("", lambda *_: sts_error(code, status)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        failure = failure_of_a_read()

    assert type(failure) is kind
    assert str(failure) == (
        f"spec.storage: AWS gave no credentials for s3://models/x (AssumeRoleWithWebIdentity: {code}: words){remedy}"
    )


def test_a_service_for_credentials_that_does_not_answer_is_named_and_not_the_store(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "token").write_text("of the service account")
    config.write_text(f"[profile p]\nrole_arn = {ROLE}\nweb_identity_token_file = {tmp_path}/token\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:19")

    failure = failure_of_a_read()

    assert type(failure) is StorageUnavailable
    assert str(failure) == (
        "spec.storage: http://127.0.0.1:19/, which gives the credentials, did not answer (EndpointConnectionError), also "
        "after 0 s of retries; check the network, such as proxies and NetworkPolicies"
    )


@pytest.mark.parametrize(
    "profile, kind, want",
    [
        pytest.param(
            "credential_process = no-such-program",
            StorageDenied,
            "credentials need no-such-program, which cannot be used (No such file or directory); correct the "
            "environment's AWS configuration",
            id="no program",
        ),
        pytest.param(
            f"role_arn = {ROLE}\nweb_identity_token_file = /no/token",
            StorageDenied,
            "credentials need /no/token, which cannot be used (No such file or directory); correct the environment's AWS "
            "configuration",
            id="no token",
        ),
        pytest.param(
            "credential_process = sh -c 'echo log in first >&2; exit 1'",
            StorageUnavailable,
            "the service or program that gives credentials for s3://models/x gave none (Error when retrieving credentials "
            "from custom-process: log in first), also after 0 s of retries; log in again, or check the service account's "
            "role and its agent on the node",
            id="a program that fails",
        ),
        pytest.param(
            "sso_account_id = 1\nsso_role_name = r\nsso_region = us-east-1\nsso_start_url = https://team.test",
            StorageUnavailable,
            "the login that gives credentials for s3://models/x has expired (Error loading SSO Token: Token for "
            "https://team.test does not exist), also after 0 s of retries; log in again, for example with `aws sso login`",
            id="no login",
        ),
    ],
)
def test_a_profile_that_gives_no_credentials_is_explained(config: Path, profile: str, kind: type, want: str):
    config.write_text(f"[profile p]\n{profile}\n")

    failure = failure_of_a_read()

    assert type(failure) is kind
    assert str(failure) == f"spec.storage: {want}"


def test_a_code_that_nobody_can_type_is_explained(config: Path):
    config.write_text(
        f"{BASE}[profile p]\nrole_arn = {ROLE}\nsource_profile = base\nmfa_serial = arn:aws:iam::1:mfa/u\n"
    )
    read = f"from distillchain_store.s3.store import S3Store; S3Store('s3://m/x', endpoint_url='{S3}').read('a')"

    # Without a terminal, as the trainers of `distillchain run`.
    done = subprocess.run(
        [sys.executable, "-c", read],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    assert done.stderr.splitlines()[-1] == (
        "distillchain_store.errors.StorageDenied: spec.storage: the role of the AWS profile asks for an MFA code, which "
        'needs a terminal; run there: eval "$(aws configure export-credentials --format env)"'
    )
