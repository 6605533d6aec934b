"""One store, two places: the same semantics in a folder and on a real S3 server."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from distillchain_api.layout import attempt_prefix, manifest_key
from distillchain_store import commit
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing, StorageUnavailable
from distillchain_store.patience import NORMAL_S, QUICK_S, STOPPING_S, TRAINED_S, patience_for_results, with_patience
from distillchain_store.s3.store import PART_BYTES
from distillchain_store.store import Fingerprint, Store, discard, fingerprint_of
from distillchain_store.verified import download_file, read_file, verify
from store.parts import DIGEST, a_manifest

FILES = {"weights": b"w" * 1000, "config.json": b"{}", "onnx/weights": b""}


def test_the_last_write_is_read(store: Store):
    store.write("a/b.json", b"first")
    store.write("a/b.json", b"second")

    assert store.read("a/b.json") == b"second"
    assert store.fingerprint("a/b.json").size_bytes == 6
    assert store.size("a/b.json") == 6


def test_a_file_of_several_parts_comes_back_the_same(store: Store, tmp_path: Path):
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(PART_BYTES * 2 + 12345))

    sent = store.upload("x/weights", source)
    came = store.download("x/weights", tmp_path / "deep" / "copy")

    assert sent == came == store.fingerprint("x/weights") == fingerprint_of(source)
    assert store.size("x/weights") == source.stat().st_size
    assert (tmp_path / "deep" / "copy").read_bytes() == source.read_bytes()


def test_an_empty_object_is_an_object(store: Store, tmp_path: Path):
    store.write("empty", b"")

    assert store.read("empty") == b""
    assert store.size("empty") == 0
    assert store.download("empty", tmp_path / "copy").size_bytes == 0


def test_a_missing_object_is_reported_by_its_uri(store: Store, tmp_path: Path):
    for look in (store.read, store.fingerprint, store.size, lambda key: store.download(key, tmp_path / "copy")):
        with pytest.raises(ObjectMissing, match=f"^{store.uri}/no/such: no such object$"):
            look("no/such")
    assert store.list_objects("no/") == []
    store.delete(["no/such"])
    store.delete([])


def test_only_the_first_create_wins(store: Store):
    assert store.create("manifest.json", b"mine")
    assert not store.create("manifest.json", b"theirs")
    assert store.read("manifest.json") == b"mine"


def test_of_concurrent_creates_exactly_one_wins(store: Store):
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


def test_a_store_that_takes_commits_is_left_as_it_was(store: Store):
    assert commit.prove(store, DIGEST, "attempt") is None
    assert commit.prove(store, DIGEST, "attempt") is None

    assert store.list_objects("") == []


def test_discard_deletes_only_what_it_is_given(store: Store):
    for key in ("a/1", "a/2", "ab"):
        store.write(key, b"x")

    assert discard(store, "a/", ["a/1"]) is None
    assert [item.key for item in store.list_objects("")] == ["a/2", "ab"]
    assert discard(store, "a/") is None
    assert [item.key for item in store.list_objects("")] == ["ab"]


def test_discard_waits_only_a_moment_for_the_store(store: Store, monkeypatch: pytest.MonkeyPatch):
    """After an outage has ended an upload, it would otherwise wait for the store again, to delete the parts."""
    seen = []
    monkeypatch.setattr(store, "list_objects", lambda _: seen.append(store.patience()) or [])

    with with_patience(store, 1800.0):
        discard(store, "attempts/")

    assert seen == [QUICK_S]
    assert store.patience() == NORMAL_S


def test_a_stop_shortens_a_wait_that_has_begun():
    stopping = False
    patience = patience_for_results(lambda: stopping)

    assert patience() == TRAINED_S
    stopping = True
    assert patience() == STOPPING_S


def _upload(store: Store, folder: Path, attempt: str) -> None:
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    for path, content in FILES.items():
        (folder / path).write_bytes(content)
    entries = commit.upload_attempt(store, DIGEST, attempt, folder)
    assert entries == sorted(a_manifest(files=FILES).files, key=lambda entry: entry.path)


def test_the_second_attempt_adopts_the_commit_of_the_first_and_deletes_its_own_files(store: Store, tmp_path: Path):
    for attempt in ("first", "second"):
        _upload(store, tmp_path / "work", attempt)
    mine = a_manifest("first", files=FILES)

    assert commit.commit(store, mine).attempt == "first"
    assert commit.commit(store, a_manifest("second", files=FILES)).attempt == "first"
    assert commit.commit(store, mine).attempt == "first", "a repeated commit whose answer was lost"

    keys = {item.key for item in store.list_objects("")}
    assert keys == {manifest_key(DIGEST), *(f"{attempt_prefix(DIGEST, 'first')}/{path}" for path in FILES)}


def test_a_verified_read_gives_what_was_committed_from_where_the_store_is_now(store: Store, tmp_path: Path):
    _upload(store, tmp_path / "work", "first")
    commit.commit(store, a_manifest("first", files=FILES))

    manifest = commit.read_manifest(store, DIGEST)

    assert manifest is not None
    assert manifest.checkpoint == f"{store.uri}/{attempt_prefix(DIGEST, 'first')}"
    assert read_file(store, manifest, "weights") == FILES["weights"]
    with pytest.raises(ObjectMissing, match="was not kept when this stage was committed"):
        read_file(store, manifest, "history.jsonl")
    verify(store, manifest)


@pytest.mark.parametrize(
    "content, how",
    [
        pytest.param(b"w" * 999, "has 999 bytes, its manifest lists 1000", id="cut"),
        pytest.param(b"W" * 1000, "was altered: its sha256 is not the one in its manifest", id="altered"),
        pytest.param(None, "is missing", id="gone"),
    ],
)
def test_a_damaged_file_is_named_with_its_uri(store: Store, tmp_path: Path, content: bytes | None, how: str):
    _upload(store, tmp_path / "work", "first")
    manifest = a_manifest("first", files=FILES)
    key = f"{attempt_prefix(DIGEST, 'first')}/weights"
    store.delete([key]) if content is None else store.write(key, content)
    entry = next(entry for entry in manifest.files if entry.path == "weights")
    want = f"{store.uri}/{key} {how}; restore it, or delete that stage's manifest.json, and try again"

    for read in (
        lambda: verify(store, manifest),
        lambda: read_file(store, manifest, "weights"),
        lambda: download_file(store, manifest, entry, tmp_path / "copy"),
    ):
        with pytest.raises(CheckpointCorrupt) as failure:
            read()
        assert str(failure.value).startswith(want)


def test_an_upload_that_did_not_arrive_is_not_committed_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As by a store that answers before it has kept the object."""
    real = store.upload

    def lose_the_weights(key: str, path: Path) -> Fingerprint:
        sent = real(key, path)
        if key.endswith("/first/weights"):
            store.delete([key])
        return sent

    monkeypatch.setattr(store, "upload", lose_the_weights)

    with pytest.raises(StorageUnavailable, match="/first/weights did not arrive complete in the store"):
        _upload(store, tmp_path / "work", "first")

    assert store.list_objects("") == []
