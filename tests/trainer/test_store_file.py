"""The store in a folder: what a disk or a network volume refuses, cuts off or lacks."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from distillchain_api import layout
from distillchain_api.wire.manifest import parse_manifest
from distillchain_store import commit
from distillchain_store.errors import DiskFull, StorageDenied, StorageUnavailable
from distillchain_store.folder import FileStore
from trainer.parts import an_order, run_here


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
    content = store.read(layout.manifest_key(order.digest))
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
