"""The way to an S3 server: certificates, proxies, clocks and outages."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore import auth

from cluster.certificates import Authority
from cluster.s3 import REGION, S3Server
from distillchain_store.connection_faults import proxy_variable
from distillchain_store.errors import DiskFull, StorageDenied, StorageUnavailable
from distillchain_store.patience import NORMAL_S, with_patience
from distillchain_store.s3.store import S3Store
from store.gateway import Answer, Forward, Gateway, Request
from store.parts import refused_at_once, store_behind, use_keys


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def secure(authority: Authority, s3: S3Server) -> Iterator[Gateway]:
    """The real server behind TLS, with a certificate for 127.0.0.1 and not for localhost."""
    pair = authority.issue("server", common_name="s3", hosts=["127.0.0.1"])
    with Gateway(s3.endpoint, lambda request, forward: forward(request), certificate=pair) as gateway:
        yield gateway


@pytest.mark.cluster
def test_an_untrusted_certificate_is_refused_at_once_and_a_ca_bundle_makes_it_trusted(
    secure: Gateway, authority: Authority, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    assert refused_at_once(secure.endpoint) == (
        f"spec.storage.endpointUrl: {secure.endpoint} cannot be trusted: its TLS certificate is not trusted (unable to "
        "get local issuer certificate); mount the certificate of the authority that signed it and set AWS_CA_BUNDLE to "
        "that file"
    )

    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    use_keys(monkeypatch, s3)
    store = S3Store(bucket, endpoint_url=secure.endpoint, region=REGION)
    store.write("a", b"x")
    assert store.read("a") == b"x"


@pytest.mark.cluster
def test_a_certificate_for_another_host_is_refused_at_once(
    secure: Gateway, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))

    message = refused_at_once(f"https://localhost:{secure.port}")

    assert "its TLS certificate is for another host (hostname 'localhost' doesn't match '127.0.0.1')" in message


@pytest.mark.cluster
@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_ca_bundle_that_cannot_be_read_is_named(
    secure: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
):
    if content:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))

    message = refused_at_once(secure.endpoint)

    assert ": the CA bundle cannot be read (" in message
    assert message.endswith("; set AWS_CA_BUNDLE to a file of PEM certificates")


@pytest.mark.cluster
def test_a_server_without_tls_at_an_https_address_is_named(s3: S3Server):
    message = refused_at_once(s3.endpoint.replace("http://", "https://"))

    assert message.endswith(": it answers without TLS; write http:// instead of https://, or name its TLS port")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_that_does_not_answer_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "http://bob:top-secret@127.0.0.1:9")
    store = S3Store("s3://models/x", endpoint_url="http://s3.test", region=REGION, patience_s=0)

    with pytest.raises(StorageUnavailable) as failure:
        store.read("a")

    assert str(failure.value) == (
        f"spec.storage.endpointUrl: the proxy in {name} did not connect to http://s3.test (NewConnectionError), also "
        "after 0 s of retries; correct that variable, or add the host to NO_PROXY"
    )


@pytest.mark.cluster
def test_a_proxy_is_named_when_an_answer_came_through_it(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    with Gateway(s3.endpoint, lambda *_: Answer(503, b"proxy overloaded")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        store = S3Store(bucket, endpoint_url="http://s3.test", region=REGION, patience_s=0)
        with pytest.raises(
            StorageUnavailable, match=r"\(503: Service Unavailable\), through the proxy in HTTP_PROXY, also"
        ):
            store.read("a")


def test_a_host_in_no_proxy_has_no_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", ".test")

    assert proxy_variable("https://s3.example") == "HTTPS_PROXY"
    assert proxy_variable("https://s3.test:9000") is None
    assert proxy_variable("http://s3.example") is None


@pytest.mark.cluster
def test_a_clock_that_is_corrected_meanwhile_is_waited_for(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    """A node that has just started signs with a clock that is an hour behind, until NTP has set it."""
    use_keys(monkeypatch, s3)
    behind = iter([timedelta(hours=1)] * 2)
    monkeypatch.setattr(
        auth, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - next(behind, timedelta())
    )
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)

    store.write("a", b"x")

    assert next(behind, None) is None
    assert store.read("a") == b"x"


@pytest.mark.cluster
def test_a_clock_that_stays_wrong_is_reported_with_both_times(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    """Only the store's clock is seen to differ: the gateway shifts the date of its answers."""
    use_keys(monkeypatch, s3)
    monkeypatch.setattr(
        auth, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
    )

    def rule(request: Request, forward: Forward) -> Answer:
        shifted = datetime.now(UTC) + timedelta(hours=1)
        return forward(request).with_headers(Date=shifted.strftime("%a, %d %b %Y %H:%M:%S GMT"))

    with store_behind(rule, s3, bucket, patience_s=0) as (store, _), pytest.raises(StorageUnavailable) as failure:
        store.write("a", b"x")

    assert "because the clocks differ (RequestTimeTooSkewed): this machine's clock shows 20" in str(failure.value)
    assert ": 3600 s apart, also after 0 s of retries; correct the clock" in str(failure.value) or (
        ": 3599 s apart" in str(failure.value)
    )


@pytest.mark.parametrize("spec, environment", [("http://s3.storage:9000", ""), (None, "http://s3.storage:9000")])
def test_an_endpoint_is_addressed_by_path(monkeypatch: pytest.MonkeyPatch, spec: str | None, environment: str):
    """Its DNS rarely has a name for every bucket; `models.s3.storage` would not be found."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", environment)
    store = S3Store("s3://models/distill", endpoint_url=spec, region=REGION)
    url = store._connection.client.generate_presigned_url("get_object", Params={"Bucket": "models", "Key": "a"})
    assert url.startswith("http://s3.storage:9000/models/a?")


def test_a_configuration_file_of_aws_can_ask_for_the_bucket_in_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = S3Store("s3://models/distill", endpoint_url="http://s3.storage:9000", region=REGION)
    url = store._connection.client.generate_presigned_url("get_object", Params={"Bucket": "models", "Key": "a"})
    assert url.startswith("http://models.s3.storage:9000/a?")


@pytest.mark.cluster
def test_a_missing_bucket_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    use_keys(monkeypatch, s3)
    store = S3Store("s3://no-such-bucket/x", endpoint_url=s3.endpoint, region=REGION)

    for request in (store.read, store.size, store.list_objects, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(StorageDenied, match=r"^spec\.storage\.uri: http://\S+ has no bucket no-such-bucket; "):
            request("a")


@pytest.mark.cluster
def test_a_full_local_disk_is_named(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    use_keys(monkeypatch, s3)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    store.write("a", b"x" * 100_000)

    with pytest.raises(DiskFull, match=r"^no space left on the disk at /dev/full; "):
        store.download("a", Path("/dev/full"))


def test_a_disk_without_room_for_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    store = S3Store("s3://models/x", endpoint_url="http://127.0.0.1:9", region=REGION)
    monkeypatch.setattr(Path, "mkdir", full)

    with pytest.raises(DiskFull, match=f"^no space left on the disk at {tmp_path}/deep/copy; "):
        store.download("a", tmp_path / "deep" / "copy")


@pytest.mark.parametrize(
    "spec, variables, want",
    [
        (None, {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://b:9"}, "AWS_ENDPOINT_URL_S3"),
        (None, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS_ENDPOINT_URL"),
        ("http://127.0.0.1:9", {"AWS_ENDPOINT_URL": "http://b:9"}, "spec.storage.endpointUrl"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_named_with_its_origin(
    monkeypatch: pytest.MonkeyPatch, spec: str | None, variables: dict[str, str], want: str
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(StorageUnavailable, match=rf"^{want}: http://127\.0\.0\.1:9 did not answer"):
        S3Store("s3://models/x", endpoint_url=spec, region=REGION, patience_s=0).read("a")


@pytest.mark.cluster
def test_an_outage_is_waited_out_and_a_long_one_is_reported(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    use_keys(monkeypatch, s3)
    S3Store(bucket, endpoint_url=s3.endpoint, region=REGION).write("a", b"kept")
    s3.stop()
    try:
        short = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION, patience_s=1)
        with pytest.raises(StorageUnavailable) as failure:
            short.read("a")
        assert str(failure.value) == (
            f"spec.storage.endpointUrl: {s3.endpoint} did not answer (EndpointConnectionError), also after 1 s of "
            "retries; check the address and the network"
        )
        back = threading.Timer(0.5, s3.start)
        back.start()
        assert S3Store(bucket, endpoint_url=s3.endpoint, region=REGION, patience_s=60).read("a") == b"kept"
        back.join()
    finally:
        if not s3.is_running():
            s3.start()


def test_patience_is_asked_again_during_an_outage():
    """A trainer that waits half an hour with its results may be asked to stop meanwhile."""
    store = S3Store("s3://models/x", endpoint_url="http://127.0.0.1:9", region=REGION)
    asked = []

    def seconds() -> float:
        asked.append(None)
        return 1800.0 if len(asked) < 3 else 0.0

    with with_patience(store, seconds), pytest.raises(StorageUnavailable, match="also after 0 s of retries"):
        store.read("a")

    assert len(asked) == 4  # three times by the clock, once for the message
    assert store.patience() == NORMAL_S
