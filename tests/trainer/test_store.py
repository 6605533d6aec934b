"""One store, two places: the same semantics in a folder and on a real S3 server."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError

from cluster.ports import free_ports
from cluster.s3 import REGION, S3Server
from distillchain_api.answer import Committed, Failed, ProgressPhase
from distillchain_api.manifest import parse_manifest
from distillchain_api.workorder import WorkOrder
from distillchain_trainer import commit
from distillchain_trainer.errors import DiskFull, ObjectMissing, StorageDenied, StorageUnavailable
from distillchain_trainer.progress import Reporter
from distillchain_trainer.signals import Signals
from distillchain_trainer.store import NO_PATIENCE_S, PATIENCE_S, Store, discard, fingerprint_of, with_patience
from distillchain_trainer.store_file import FileStore
from distillchain_trainer.store_s3 import PART_BYTES, S3Store
from trainer.parts import an_order, answer_in, run_here, start_process


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.cluster)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return FileStore(f"file://{tmp_path}/store")
    server: S3Server = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    _use_keys(monkeypatch, server)
    return S3Store(f"{bucket}/some/prefix", endpoint_url=server.endpoint, region=REGION)


def _use_keys(monkeypatch: pytest.MonkeyPatch, server: S3Server, **others: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key, **others}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)


def test_what_is_written_is_read(store: Store, tmp_path: Path):
    store.write("a/b.json", b"first")
    store.write("a/b.json", b"second")

    assert store.read("a/b.json") == b"second"
    assert store.fingerprint("a/b.json").size_bytes == 6


def test_a_file_of_several_parts_comes_back_the_same(store: Store, tmp_path: Path):
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(PART_BYTES * 2 + 12345))

    sent = store.upload("x/weights", source)
    came = store.download("x/weights", tmp_path / "deep" / "copy")

    assert sent == came == store.fingerprint("x/weights") == fingerprint_of(source)
    assert (tmp_path / "deep" / "copy").read_bytes() == source.read_bytes()


def test_an_empty_object_is_an_object(store: Store, tmp_path: Path):
    store.write("empty", b"")

    assert store.read("empty") == b""
    assert store.download("empty", tmp_path / "copy").size_bytes == 0


def test_what_is_not_there_is_missing(store: Store, tmp_path: Path):
    for look in (store.read, store.fingerprint, lambda key: store.download(key, tmp_path / "copy")):
        with pytest.raises(ObjectMissing, match=f"^{store.uri}/no/such: no such object$"):
            look("no/such")
    assert store.list_objects("no/") == []
    store.delete(["no/such"])


def test_only_the_first_create_wins(store: Store):
    assert store.create("manifest.json", b"mine")
    assert not store.create("manifest.json", b"theirs")
    assert store.read("manifest.json") == b"mine"


def test_of_many_creates_at_once_one_wins(store: Store):
    start = threading.Barrier(8)
    won: list[int] = []

    def race(number: int) -> None:
        start.wait()
        if store.create("manifest.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert store.read("manifest.json") == str(won[0]).encode()


def test_a_prefix_lists_its_own_objects_and_deletes_them(store: Store):
    for key in ("a/1", "a/2/x", "ab/3"):
        store.write(key, b"1234")

    listed = [(item.key, item.size_bytes) for item in store.list_objects("a/")]
    assert listed == [("a/1", 4), ("a/2/x", 4)]

    store.delete([key for key, _ in listed])
    assert [item.key for item in store.list_objects("")] == ["ab/3"]


def test_a_copy_that_differs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of other bytes stands in for a disk that altered them."""
    (tmp_path / "weights").write_bytes(b"whole")
    monkeypatch.setattr("shutil.copyfile", lambda _source, target: target.write_bytes(b"wholf"))

    with pytest.raises(StorageUnavailable, match=r"/store/a/weights differs from what was written; look at the disk$"):
        FileStore(f"file://{tmp_path}/store").upload("a/weights", tmp_path / "weights")

    assert not list((tmp_path / "store").rglob("weights*"))


def test_a_file_is_on_the_disk_with_its_folders_before_it_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "weights").write_bytes(b"whole")
    synced: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    store = FileStore(f"file://{tmp_path}/store")

    store.upload("a/b/weights", tmp_path / "weights")
    uploaded = list(synced)
    store.create("a/manifest.json", b"{}")

    assert uploaded[0].startswith(f"{tmp_path}/store/a/b/weights.part-")
    assert uploaded[1:] == [f"{tmp_path}/store/a/b", f"{tmp_path}/store/a", f"{tmp_path}/store"]
    assert synced[-2:] == [f"{tmp_path}/store/a", f"{tmp_path}/store"]


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
    _use_keys(monkeypatch, s3)
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
    _use_keys(monkeypatch, s3)
    store = S3Store(bucket, endpoint_url=s3.endpoint, region=REGION)
    store.write("a", b"x" * 100_000)

    with pytest.raises(DiskFull) as failure:
        store.download("a", Path("/dev/full"))

    want = f"no space left on the disk for {bucket}/a; give the pod more ephemeral storage, or free the volume"
    assert str(failure.value) == want


def test_a_folder_that_may_not_be_written_is_refused_by_name(tmp_path: Path):
    (tmp_path / "store").write_text("a file where the folder should be")
    store = FileStore(f"file://{tmp_path}/store")

    with pytest.raises(StorageDenied) as failure:
        store.write("a", b"x")

    assert str(failure.value).startswith(f"spec.storage.uri: file://{tmp_path}/store/a is refused by the file system (")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_folder_that_cannot_be_made_is_refused_and_not_called_missing(tmp_path: Path):
    """A trainer that is told so tries again, for hours."""
    store = FileStore("file:///proc/nope")
    (tmp_path / "x").write_bytes(b"x")

    for write in (lambda: store.write("a/b", b"x"), lambda: store.upload("a/b", tmp_path / "x")):
        with pytest.raises(StorageDenied, match=r"file:///proc/nope/a/b is refused by the file system \(No such file"):
            write()
    with pytest.raises(StorageDenied):
        store.create("a/b", b"x")


def test_a_listing_that_cannot_be_read_whole_is_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network volume that is away for a moment, which this machine lacks; without it a stage would begin anew."""
    store = FileStore(f"file://{tmp_path}/store")
    store.write("a/b/c", b"x")

    def away(_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "scandir", away)
    with pytest.raises(StorageUnavailable, match="Stale file handle"):
        store.list_objects("a/")


def test_a_listing_of_all_is_of_the_store_alone(tmp_path: Path):
    (tmp_path / "neighbour").write_bytes(b"x")
    store = FileStore(f"file://{tmp_path}/store")
    store.write("a", b"x")

    assert [item.key for item in store.list_objects("")] == ["a"]


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a volume of CIFS or FUSE refuses them."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.usefixtures("without_links")
def test_without_links_what_cannot_be_written_leaves_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FileStore(f"file://{tmp_path}/store")
    written, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 1:  # the part is whole, its copy under the final name is not
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        store.create("manifest.json", b"content")

    assert store.list_objects("") == []


@pytest.mark.models
@pytest.mark.usefixtures("without_links")
def test_without_links_a_rivals_manifest_is_waited_for_until_it_is_whole(root: Path):
    order = an_order(root)
    run_here(order, root)
    store = FileStore(f"file://{root}/store")
    content = store.read(commit.manifest_key(order.digest))
    path = root / f"store/stages/{order.digest}/manifest.json"
    path.write_bytes(content[:100])
    whole = threading.Timer(1.0, path.write_bytes, [content])
    whole.start()

    winner = commit.commit(store, parse_manifest(content).model_copy(update={"attempt": "late"}))
    whole.join()

    assert winner.attempt == "here"


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file size limit of this process stands in for the full disk: the kernel's answer has another number, so the
    one of a full disk is put in its place."""
    store = FileStore("file:///dev/full")
    store._root = tmp_path
    real_link = Path.hardlink_to

    def full(self: Path, target: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        real_link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", full)

    with pytest.raises(DiskFull, match="no space left on the disk; give the pod more ephemeral storage, or free"):
        store.create("manifest.json", b"x")

    assert list(tmp_path.iterdir()) == []


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
    _use_keys(monkeypatch, s3, **keys)
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
    _use_keys(monkeypatch, s3)
    store = S3Store("s3://no-such-bucket/x", endpoint_url=s3.endpoint, region=REGION)
    want = f"spec.storage.uri: {s3.endpoint} has no bucket no-such-bucket; create it or correct the name"

    for request in (store.read, store.list_objects, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(StorageDenied) as failure:
            request("a")
        assert str(failure.value) == want


@pytest.mark.cluster
def test_an_outage_is_waited_out_and_a_long_one_is_named(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    _use_keys(monkeypatch, s3)
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


def test_a_store_that_can_be_committed_to_is_left_as_it_was(store: Store):
    commit.prove(store, "d" * 64, "attempt")
    commit.prove(store, "d" * 64, "attempt")

    assert store.list_objects("") == []


@pytest.mark.cluster
def test_a_store_that_overwrites_a_commit_is_refused(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch):
    """The condition is lost on the way to a real server, which then does as one that does not know it."""
    _use_keys(monkeypatch, s3)
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


class Rival(Reporter):
    """At the last moment before this trainer uploads, another one commits the same stage."""

    def __init__(self, order: WorkOrder, root: Path) -> None:
        super().__init__(order.stage, None)
        self._order, self._root = order, root

    def report(self, phase: ProgressPhase, step: int, *_: Any, **__: Any) -> None:
        if (phase, step) == ("Upload", 0):
            run_here(self._order, self._root, attempt="rival")


@pytest.mark.cluster
def test_patience_is_asked_again_while_an_outage_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who waits half an hour with a trained student may be told to stop meanwhile."""
    with S3Server(tmp_path / "s3") as server:
        _use_keys(monkeypatch, server)
        store = S3Store(server.ensure_bucket("models"), endpoint_url=server.endpoint, region=REGION)
    asked = []

    def seconds() -> float:
        asked.append(None)
        return 1800.0 if len(asked) < 3 else 0.0

    with with_patience(store, seconds), pytest.raises(StorageUnavailable, match="also after 0 s of trying"):
        store.read("a")

    assert len(asked) == 4  # three looks at the clock, and the sentence
    assert store.patience() == PATIENCE_S


@pytest.mark.cluster
def test_what_nobody_reads_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An upload that an outage has ended would else wait for it again, to delete its part."""
    with S3Server(tmp_path / "s3") as server:
        _use_keys(monkeypatch, server)
        store = S3Store(server.ensure_bucket("models"), endpoint_url=server.endpoint, region=REGION)
    seen = []
    monkeypatch.setattr(store, "list_objects", lambda _: seen.append(store.patience()) or [])

    with with_patience(store, lambda: 1800.0):
        discard(store, "attempts/")

    assert seen == [NO_PATIENCE_S]


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
    from distillchain_trainer.run import run_stage

    _use_keys(monkeypatch, s3)
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
