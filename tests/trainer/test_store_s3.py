"""The store on S3: refusals in words that can be acted on, outages, credentials, and races."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError

from cluster.ports import free_ports
from cluster.s3 import REGION, S3Server
from distillchain_api.wire.answer import Committed, Failed
from distillchain_store import commit
from distillchain_store.errors import DiskFull, StorageDenied, StorageUnavailable
from distillchain_store.s3 import S3Store
from distillchain_store.store import PATIENCE_S, with_patience
from distillchain_trainer.launch.signals import Signals
from trainer.parts import Rival, an_order, answer_in, start_process, use_keys


@pytest.mark.parametrize(
    "code, want",
    [
        pytest.param("NoSuchBucket", "spec.teacher.model: http://s3.test has no bucket models; create it or correct the name", id="bucket"),
        pytest.param("InvalidAccessKeyId", "spec.storage.secretRef: http://s3.test refused s3://models/x (InvalidAccessKeyId: words); correct the Secret's credentials, or let them read and write there", id="credentials"),
        pytest.param("PermanentRedirect", "spec.storage.region: bucket models is in another region (PermanentRedirect: words); name it", id="region"),
        pytest.param("InvalidRequest", "spec.storage: http://s3.test does not do what it was asked for s3://models/x/k (InvalidRequest: words); look at the store's rules for this bucket", id="not to be had by trying again"),
        pytest.param("BadDigest", "spec.storage: http://s3.test answered BadDigest: words to s3://models/x/k; look at the store", id="altered on the way: sent again"),
        pytest.param("NoSuchUpload", "spec.storage: http://s3.test answered NoSuchUpload: words to s3://models/x/k; look at the store", id="the answer was lost: sent again"),
        pytest.param("RequestTimeTooSkewed", "spec.storage: http://s3.test refused s3://models/x (RequestTimeTooSkewed: words); set the clock here or there", id="clocks"),
        pytest.param("SlowDown", "spec.storage.endpointUrl: http://s3.test could not do it (SlowDown: words); look at the store", id="busy"),
    ],
)  # fmt: skip
def test_a_fault_is_sent_to_the_field_that_can_mend_it(code: str, want: str):
    store = S3Store("s3://models/x", endpoint_url="http://s3.test", region=REGION, field="spec.teacher.model")
    answer: Any = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": 400}}

    assert str(store._of_answer("k", ClientError(answer, "GetObject"))) == want


@pytest.mark.parametrize(
    "endpoint", ["http://bob:top-secret@s3.test", "http://bob:top-secret@ s3.test", "bob:top-secret@s3.test"]
)
def test_a_password_in_the_endpoint_is_not_shown(endpoint: str):
    """All but the first are refused by botocore, which quotes them."""
    answer: Any = {"Error": {"Code": "SlowDown", "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": 503}}

    try:
        store = S3Store("s3://models/x", endpoint_url=endpoint, region=REGION)
        said = str(store._of_answer("k", ClientError(answer, "GetObject")))
    except StorageDenied as error:
        said = str(error)

    assert "s3.test" in said
    assert "bob" not in said
    assert "top-secret" not in said


@pytest.mark.cluster
def test_a_refused_key_among_those_to_delete_is_told(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    """AWS answers the whole request with 200 and names the key in its body: put there, for this server refuses all."""
    use_keys(monkeypatch, s3)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    store.write("a", b"x")
    gone = b"<Error><Key>b</Key><Code>NoSuchKey</Code><Message>gone</Message></Error>"
    refused = b"<Error><Key>a</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    said = [gone, gone + refused]

    def answer(response_dict: dict[str, Any], **_: Any) -> None:
        response_dict["body"] = b"<DeleteResult>" + said.pop(0) + b"</DeleteResult>"

    store._client.meta.events.register("before-parse.s3.DeleteObjects", answer)

    store.delete(["a", "b"])
    with pytest.raises(StorageDenied) as failure:
        store.delete(["a", "b"])

    assert str(failure.value).startswith(
        f"spec.storage.secretRef: {s3.endpoint} refused {bucket} (AccessDenied: Access Denied); correct the Secret's"
    )


@pytest.mark.cluster
def test_a_disk_that_is_full_while_fetching_is_named(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    use_keys(monkeypatch, s3)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    store.write("a", b"x" * 100_000)

    with pytest.raises(DiskFull) as failure:
        store.download("a", Path("/dev/full"))

    want = f"no space left on the disk for {bucket}/a; give the pod more ephemeral storage, or free the volume"
    assert str(failure.value) == want


@pytest.mark.cluster
@pytest.mark.parametrize(
    "keys, want",
    [
        pytest.param(
            {"AWS_SECRET_ACCESS_KEY": "not-the-right-one"},
            "spec.storage.secretRef: {endpoint} refused {uri} (SignatureDoesNotMatch: The request signature we calculated "
            "does not match the signature you provided. Check your key and signing method.); correct the Secret's "
            "credentials, or let them read and write there",
            id="wrong secret",
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": "nobody"},
            "spec.storage.secretRef: {endpoint} refused {uri} (InvalidAccessKeyId: The access key ID you provided does "
            "not exist in our records.); correct the Secret's credentials, or let them read and write there",
            id="unknown key",
        ),
    ],
)
def test_wrong_credentials_are_refused_in_words(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys: dict[str, str], want: str
):
    use_keys(monkeypatch, s3, **keys)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    (tmp_path / "file").write_bytes(b"x")

    requests = [
        lambda: store.read("a"),
        lambda: store.create("a", b"x"),
        lambda: store.upload("a", tmp_path / "file"),
        lambda: store.list_objects(""),
    ]
    for request in requests:
        with pytest.raises(StorageDenied) as failure:
            request()
        assert str(failure.value) == want.format(endpoint=s3.endpoint, uri=bucket)


@pytest.mark.parametrize("spec, environment", [("http://s3.storage:9000", ""), (None, "http://s3.storage:9000")])
def test_an_endpoint_is_asked_by_path(monkeypatch: pytest.MonkeyPatch, spec: str | None, environment: str):
    """Its DNS rarely knows a name for every bucket; `models.s3.storage` would not be found."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", environment)
    store = S3Store("s3://models/distill", endpoint_url=spec, region=REGION)
    url = store._client.generate_presigned_url("get_object", Params={"Bucket": "models", "Key": "a"})
    assert url.startswith("http://s3.storage:9000/models/a?")


@pytest.mark.cluster
def test_a_missing_bucket_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    use_keys(monkeypatch, s3)
    store = S3Store("s3://no-such-bucket/x", endpoint_url=s3.endpoint, region=REGION)
    want = f"spec.storage.uri: {s3.endpoint} has no bucket no-such-bucket; create it or correct the name"

    for request in (store.read, store.list_objects, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(StorageDenied) as failure:
            request("a")
        assert str(failure.value) == want


@pytest.mark.cluster
def test_an_outage_is_waited_out_and_a_long_one_is_named(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    use_keys(monkeypatch, s3)
    S3Store(bucket, endpoint_url=s3.endpoint, region=REGION).write("a", b"kept")
    s3.stop()
    try:
        short = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION, patience_s=1)
        with pytest.raises(StorageUnavailable) as failure:
            short.read("a")
        assert str(failure.value) == (
            f"spec.storage.endpointUrl: {s3.endpoint} did not answer (EndpointConnectionError), also after 1 s of "
            "trying; check the address and the network"
        )
        back = threading.Timer(0.5, s3.start)
        back.start()
        assert S3Store(bucket, endpoint_url=s3.endpoint, region=REGION, patience_s=60).read("a") == b"kept"
        back.join()
    finally:
        if not s3.is_running():
            s3.start()


@pytest.mark.cluster
def test_no_credentials_at_all_are_said(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(StorageDenied) as failure:
        S3Store(bucket, endpoint_url=s3.endpoint, region=REGION).read("a")

    assert str(failure.value) == (
        f"spec.storage.secretRef: no credentials for {bucket} (Unable to locate credentials); name a Secret with "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service account a role; outside a cluster set these "
        "variables or AWS_PROFILE"
    )


@pytest.mark.cluster
def test_a_store_that_overwrites_a_commit_is_refused(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    """The condition is lost on the way to a real server, which then does as one that does not know it."""
    use_keys(monkeypatch, s3)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    events = store._client.meta.events
    events.register("before-sign.s3.PutObject", lambda request, **_: request.headers.__delitem__("If-None-Match"))

    with pytest.raises(StorageDenied) as failure:
        commit.prove(store, "d" * 64, "attempt")

    assert str(failure.value).startswith(f"spec.storage.uri: {bucket} lets a second writer replace")
    assert store.list_objects("") == []


@pytest.mark.cluster
@pytest.mark.models
def test_a_right_to_write_that_is_missing_is_said_before_any_work(root: Path, s3: S3Server, bucket: str):
    order = an_order(root, storage={"uri": f"{bucket}/out", "endpointUrl": s3.endpoint})
    keys = {"AWS_ACCESS_KEY_ID": s3.reader_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_REGION": REGION}

    process = start_process(order, root, **keys)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 69, stderr
    failed = answer_in(root)
    assert isinstance(failed, Failed)
    assert failed.message.startswith(f"spec.storage.secretRef: {s3.endpoint} refused {bucket}/out (AccessDenied")
    assert "FetchTeacher" not in stdout
    assert "data read" not in stderr


@pytest.mark.cluster
def test_patience_is_asked_again_while_an_outage_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who waits half an hour with a trained student may be told to stop meanwhile."""
    with S3Server(tmp_path / "s3") as server:
        use_keys(monkeypatch, server)
        store = S3Store(server.ensure_bucket("models"), endpoint_url=server.endpoint, region=REGION)
    asked = []

    def seconds() -> float:
        asked.append(None)
        return 1800.0 if len(asked) < 3 else 0.0

    with with_patience(store, seconds), pytest.raises(StorageUnavailable, match="also after 0 s of trying"):
        store.read("a")

    assert len(asked) == 4  # three looks at the clock, and the sentence
    assert store.patience() == PATIENCE_S


class _Credentials(BaseHTTPRequestHandler):
    """What an agent on the node answers to pods whose service account has a role."""

    keys: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        content = json.dumps(self.keys).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.cluster
def test_an_agent_for_credentials_that_is_late_is_waited_for(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    """A node that has just joined starts it after the first pod."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    s3.client().put_object(Bucket=bucket[5:], Key="a", Body=b"x")
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/")
    with pytest.raises(
        StorageUnavailable, match=r"^spec\.storage: who gives the credentials for s3://.* did not answer"
    ):
        S3Store(bucket, endpoint_url=s3.endpoint, region=REGION, patience_s=0)
    _Credentials.keys = {"AccessKeyId": s3.access_key, "SecretAccessKey": s3.secret_key, "Token": ""}
    _Credentials.keys |= {"Expiration": "2100-01-01T00:00:00Z"}

    def serve() -> None:
        with HTTPServer(("127.0.0.1", port), _Credentials) as server:
            server.timeout = 60
            server.handle_request()

    agent = threading.Timer(4.0, serve)
    agent.daemon = True
    agent.start()
    assert S3Store(bucket, endpoint_url=s3.endpoint, region=REGION).read("a") == b"x"
    agent.join()


@pytest.mark.cluster
def test_of_two_trainers_on_s3_one_commits_and_the_other_adopts(
    root: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    from distillchain_trainer.stage.run import run_stage

    use_keys(monkeypatch, s3)
    order = an_order(root, storage={"uri": f"{bucket}/race", "endpointUrl": s3.endpoint})
    (root / "work").mkdir()

    answer = run_stage(order, attempt="late", folder=root / "work", reporter=Rival(order, root), signals=Signals())

    assert (answer.attempt, answer.reused) == ("rival", True)
    store = S3Store(f"{bucket}/race", endpoint_url=s3.endpoint, region=REGION)
    keys = [item.key.removeprefix(f"stages/{order.digest}/") for item in store.list_objects("stages/")]
    assert {key.split("/")[1] for key in keys if key.startswith("attempts/")} == {"rival"}
    assert not [key for key in keys if key.startswith("resume/")]


@pytest.mark.cluster
def test_a_whole_stage_on_s3_and_a_damaged_object_is_named(root: Path, s3: S3Server, bucket: str):
    client = s3.client()
    for folder in ("data", "teacher"):
        for path in (root / folder).iterdir():
            client.upload_file(str(path), bucket[5:], f"in/{folder}/{path.name}")
    order = an_order(
        root,
        storage={"uri": f"{bucket}/out", "endpointUrl": s3.endpoint},
        dataset={"uri": f"{bucket}/in/data"},
        teacher={"model": f"{bucket}/in/teacher"},
    )
    keys = {name: value for name, value in s3.environment().items() if name != "AWS_ENDPOINT_URL_S3"}

    process = start_process(order, root, **keys)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    answer = answer_in(root)
    assert isinstance(answer, Committed)
    assert answer.checkpoint == f"{bucket}/out/stages/{order.digest}/attempts/{answer.attempt}"
    weights = f"{answer.checkpoint}/model.safetensors"
    client.put_object(Bucket=bucket[5:], Key=weights.removeprefix(f"{bucket}/"), Body=b"short")

    process = start_process(order, root, **keys)
    process.communicate(timeout=60)

    assert process.returncode == 66
    failed = answer_in(root)
    assert isinstance(failed, Failed)
    assert failed.message.startswith(f"{weights} has 5 bytes, its manifest lists ")
    assert not any(secret in failed.message + stderr for secret in (s3.secret_key,))
