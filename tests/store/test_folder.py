"""The store in a folder: refusals, faults and missing features of disks and network volumes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from distillchain_api.layout import manifest_key
from distillchain_store import commit
from distillchain_store.errors import DiskFull, StorageDenied, StorageUnavailable
from distillchain_store.folder import FileStore
from store.parts import DIGEST, a_manifest


def test_a_copy_that_differs_from_its_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy function that writes other bytes stands in for a disk that alters them."""
    (tmp_path / "weights").write_bytes(b"whole")
    monkeypatch.setattr("shutil.copyfile", lambda _source, target: target.write_bytes(b"wholf"))

    with pytest.raises(StorageUnavailable, match=r"/store/a/weights differs from what was written; check the disk$"):
        FileStore(f"file://{tmp_path}/store").upload("a/weights", tmp_path / "weights")

    assert not list((tmp_path / "store").rglob("weights*"))


def test_a_file_and_its_folders_are_synced_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_a_folder_without_write_access_is_named(tmp_path: Path):
    (tmp_path / "store").write_text("a file where the folder should be")
    store = FileStore(f"file://{tmp_path}/store")

    with pytest.raises(StorageDenied) as failure:
        store.write("a", b"x")

    assert str(failure.value).startswith(f"spec.storage.uri: file://{tmp_path}/store/a is refused by the file system (")


def test_a_folder_that_cannot_be_created_is_refused_and_not_called_missing(tmp_path: Path):
    """Of a missing object a trainer would think that it may come later."""
    store = FileStore("file:///proc/nope")
    (tmp_path / "x").write_bytes(b"x")

    for write in (lambda: store.write("a/b", b"x"), lambda: store.upload("a/b", tmp_path / "x")):
        with pytest.raises(StorageDenied, match=r"file:///proc/nope/a/b is refused by the file system \(No such file"):
            write()
    with pytest.raises(StorageDenied):
        store.create("a/b", b"x")


def test_an_incomplete_listing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a network volume that is unavailable for a moment: a stage would not see its states, and start over."""
    store = FileStore(f"file://{tmp_path}/store")
    store.write("a/b/c", b"x")

    def away(_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "scandir", away)
    with pytest.raises(StorageUnavailable, match="Stale file handle"):
        store.list_objects("a/")


def test_a_listing_of_everything_stays_within_the_store(tmp_path: Path):
    (tmp_path / "neighbour").write_bytes(b"x")
    store = FileStore(f"file://{tmp_path}/store")
    store.write("a", b"x")

    assert [item.key for item in store.list_objects("")] == ["a"]


def test_folders_that_are_links_to_another_disk_are_listed_and_links_to_themselves_are_not(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}/store")
    store.write("a/b", b"x")
    store.write("c/d", b"x")
    (tmp_path / "store" / "a").rename(tmp_path / "disk")
    (tmp_path / "store" / "a").symlink_to(tmp_path / "disk")
    (tmp_path / "store" / "c" / "up").symlink_to("..")

    assert [item.key for item in store.list_objects("")] == ["a/b", "c/d"]


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses hard links, as volumes of CIFS or FUSE do."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.usefixtures("without_links")
def test_without_links_a_failed_create_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FileStore(f"file://{tmp_path}/store")
    written, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 1:  # the first file is complete, its copy under the final name is not
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        store.create("manifest.json", b"content")

    assert store.list_objects("") == []


@pytest.mark.usefixtures("without_links")
@pytest.mark.parametrize("found", [pytest.param([], id="new"), pytest.param(["first"], id="of another writer")])
def test_without_links_a_signal_anywhere_leaves_the_whole_file_or_none(tmp_path: Path, found: list[str]):
    """A signal handler that raises runs between any two instructions."""
    left = set()
    for instruction in itertools.count():
        store = FileStore(f"file://{tmp_path}/{instruction}")
        for content in found:
            store.create("manifest.json", content.encode())
        try:
            with _raises_before(instruction, "_create_without_links"):
                store.create("manifest.json", b"second")
        except KeyboardInterrupt:
            left.add(tuple(store.read(item.key).decode() for item in store.list_objects("")))
        else:
            break

    assert instruction > 20
    assert left == ({tuple(found)} if found else {(), ("second",)})


@contextlib.contextmanager
def _raises_before(instruction: int, function: str) -> Iterator[None]:
    """Raises KeyboardInterrupt before an instruction of the function, counted from 0."""
    left = itertools.count(instruction, -1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name != function:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left) == 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.usefixtures("without_links")
def test_without_links_a_manifest_that_is_still_being_written_is_waited_for(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}/store")
    content = a_manifest("first").to_json().encode()
    store.write(manifest_key(DIGEST), content[:100])
    complete = threading.Timer(0.6, store.write, [manifest_key(DIGEST), content])
    complete.start()

    winner = commit.commit(store, a_manifest("second"))
    complete.join()

    assert winner.attempt == "first"


@pytest.mark.parametrize(
    "host, remedy",
    [
        pytest.param("10.96.0.1", "give the pod more ephemeral storage, or free the volume", id="in a pod"),
        pytest.param("", "free space there, or choose another disk (TMPDIR for temporary files, HF_HOME for models of the hub)", id="on a laptop"),
    ],
)  # fmt: skip
def test_a_full_disk_is_named_and_leaves_no_file(
    host: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """/dev/full gives the kernel's own answer of a full disk, in the middle of a write."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    store = FileStore(f"file://{tmp_path}/store")
    real_link = Path.hardlink_to

    def full(self: Path, target: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        real_link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", full)

    with pytest.raises(DiskFull) as failure:
        store.create("manifest.json", b"x")

    assert str(failure.value) == f"no space left on the disk at file://{tmp_path}/store/manifest.json; {remedy}"
    assert list((tmp_path / "store").iterdir()) == []


def test_a_full_local_disk_is_named_by_its_own_path_and_not_by_the_stores(tmp_path: Path):
    store = FileStore(f"file://{tmp_path}/store")
    store.write("a", b"x" * 100_000)

    with pytest.raises(DiskFull, match=r"^no space left on the disk at /dev/full; "):
        store.download("a", Path("/dev/full"))
