"""One store, two places: the same semantics in a folder and on a real S3 server."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_store import commit
from distillchain_store.errors import ObjectMissing
from distillchain_store.folder import FileStore
from distillchain_store.s3 import PART_BYTES, S3Store
from distillchain_store.store import NO_PATIENCE_S, Store, discard, fingerprint_of, with_patience
from trainer.parts import use_keys


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.cluster)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return FileStore(f"file://{tmp_path}/store")
    server: S3Server = request.getfixturevalue("s3")
    bucket: str = request.getfixturevalue("bucket")
    use_keys(monkeypatch, server)
    return S3Store(f"{bucket}/some/prefix", endpoint_url=server.endpoint, region=REGION)


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


def test_a_store_that_can_be_committed_to_is_left_as_it_was(store: Store):
    commit.prove(store, "d" * 64, "attempt")
    commit.prove(store, "d" * 64, "attempt")

    assert store.list_objects("") == []


def test_what_nobody_reads_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch):
    """An upload that an outage has ended would else wait for it again, to delete its part."""
    seen = []
    monkeypatch.setattr(store, "list_objects", lambda _: seen.append(store.patience()) or [])

    with with_patience(store, lambda: 1800.0):
        discard(store, "attempts/")

    assert seen == [NO_PATIENCE_S]
