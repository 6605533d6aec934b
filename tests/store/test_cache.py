"""The cache of fetched files: each file once, never a damaged or half-written one, and never an error of its own."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.s3 import REGION, S3Server
from distillchain_store.cache import PART_MARK, PART_S, FileCache
from distillchain_store.errors import DiskFull
from distillchain_store.s3.store import S3Store
from distillchain_store.store import Fingerprint, fingerprint_of
from store.gateway import Gateway
from store.parts import use_keys


class Source:
    """An object somewhere, with the number of its downloads."""

    def __init__(self, content: bytes, *, version: str = "1") -> None:
        self.content, self.version, self.downloads = content, version, 0

    def fetch(self, cache: FileCache, path: Path) -> bytes:
        cache.fetch(lambda: f"object at {self.version}", path, lambda: self.download(path))
        return path.read_bytes()

    def download(self, path: Path) -> Fingerprint:
        self.downloads += 1
        path.write_bytes(self.content)
        return fingerprint_of(path)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "files").rglob("*") if path.is_file())


def test_a_file_is_fetched_once_for_all_that_share_the_cache(tmp_path: Path):
    source = Source(b"weights")

    found = [source.fetch(FileCache(tmp_path / "cache"), tmp_path / name) for name in "ab"]

    assert found == [b"weights", b"weights"]
    assert source.downloads == 1


def test_a_replaced_object_is_fetched_again(tmp_path: Path):
    cache, source = FileCache(tmp_path / "cache"), Source(b"old")
    source.fetch(cache, tmp_path / "a")

    source.content, source.version = b"new", "2"

    assert source.fetch(cache, tmp_path / "a") == b"new"


def test_content_of_an_object_that_is_replaced_during_its_download_is_not_noted(tmp_path: Path):
    cache, source = FileCache(tmp_path / "cache"), Source(b"new")
    versions = iter(["1", "2"])

    cache.fetch(lambda: next(versions), tmp_path / "a", lambda: source.download(tmp_path / "a"))

    cache.fetch(lambda: "1", tmp_path / "b", lambda: source.download(tmp_path / "b"))
    assert source.downloads == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3])


def turn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize("damage", [cut, turn, Path.unlink])
def test_a_damaged_file_is_fetched_again_and_replaced(tmp_path: Path, damage: Callable[[Path], None]):
    cache, source = FileCache(tmp_path / "cache"), Source(b"weights")
    source.fetch(cache, tmp_path / "a")
    (cached,) = files_of(tmp_path / "cache")
    damage(cached)

    assert source.fetch(cache, tmp_path / "a") == b"weights"

    assert cached.read_bytes() == b"weights"
    assert cache.faults == []


@pytest.mark.parametrize("note", ["", "not a hash", "../../secret"])
def test_a_damaged_note_is_ignored(tmp_path: Path, note: str):
    cache, source = FileCache(tmp_path / "cache"), Source(b"weights")
    source.fetch(cache, tmp_path / "a")
    (noted,) = (tmp_path / "cache/sources").iterdir()
    noted.write_text(note)

    assert source.fetch(cache, tmp_path / "a") == b"weights"
    assert source.downloads == 2


def test_known_content_is_taken_whatever_it_was_fetched_as(tmp_path: Path):
    cache, source = FileCache(tmp_path / "cache"), Source(b"weights")
    source.fetch(cache, tmp_path / "a")
    sha256 = fingerprint_of(tmp_path / "a").sha256

    found = cache.fetch_known(sha256, tmp_path / "b", lambda: pytest.fail("it is in the cache"))

    assert found == fingerprint_of(tmp_path / "b")


def test_content_that_is_not_what_a_manifest_lists_is_not_kept(tmp_path: Path):
    cache = FileCache(tmp_path / "cache")

    cache.fetch_known("0" * 64, tmp_path / "a", lambda: Source(b"altered").download(tmp_path / "a"))

    assert files_of(tmp_path / "cache") == []


def test_a_full_volume_is_a_fault_and_the_file_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"wei")  # as much as there was room for
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    cache, source = FileCache(tmp_path / "cache"), Source(b"weights")

    assert [source.fetch(cache, tmp_path / name) for name in "ab"] == [b"weights", b"weights"]

    assert files_of(tmp_path / "cache") == [], "nothing half-written stays"
    assert cache.faults == [
        f"the cache {tmp_path}/cache cannot be written (No space left on device); files are fetched again instead: free "
        "its volume, or limit the cache"
    ]


def test_a_folder_that_cannot_be_used_is_a_fault_and_the_file_is_fetched(tmp_path: Path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    cache = FileCache(tmp_path / "cache")

    assert Source(b"weights").fetch(cache, tmp_path / "a") == b"weights"

    (fault,) = cache.faults
    assert "cannot be written (Not a directory)" in fault


def test_a_full_disk_of_the_stage_is_not_blamed_on_the_cache(tmp_path: Path):
    cache, source = FileCache(tmp_path / "cache"), Source(b"weights" * 10_000)
    source.fetch(cache, tmp_path / "a")

    with pytest.raises(DiskFull, match="/dev/full"):
        source.fetch(cache, Path("/dev/full"))

    assert cache.faults == []


def test_with_a_limit_the_files_that_were_not_taken_for_longest_are_deleted(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", max_bytes=20)
    sources = {name: Source(name.encode() * 8, version=name) for name in "abc"}
    for age, name in ((200, "a"), (100, "b")):
        sources[name].fetch(cache, tmp_path / "x")
        newest = max(files_of(tmp_path / "cache"), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    sources["a"].fetch(cache, tmp_path / "x")

    sources["c"].fetch(cache, tmp_path / "x")

    assert {path.read_bytes()[:1] for path in files_of(tmp_path / "cache")} == {b"a", b"c"}
    sources["d"] = Source(b"d" * 21, version="d")
    assert sources["d"].fetch(cache, tmp_path / "x") == b"d" * 21
    assert len(files_of(tmp_path / "cache")) == 2, "a file that does not fit displaces no other"


def test_what_a_killed_pod_left_is_deleted_after_a_day_and_what_another_writes_is_not(tmp_path: Path):
    folder = tmp_path / "cache/files/aa"
    folder.mkdir(parents=True)
    for name, age_s in (("old", PART_S + 60), ("new", 60)):
        part = folder / f"{PART_MARK}{name}"
        part.write_bytes(b"half")
        os.utime(part, (part.stat().st_mtime - age_s,) * 2)

    Source(b"weights").fetch(FileCache(tmp_path / "cache", max_bytes=8), tmp_path / "x")

    assert [path.name for path in files_of(tmp_path / "cache") if path.name.startswith(PART_MARK)] == [
        f"{PART_MARK}new"
    ]


def test_pods_that_fetch_at_the_same_time_all_get_whole_files(tmp_path: Path):
    content = os.urandom(300_000)

    def pod(number: int) -> bytes:
        return Source(content).fetch(FileCache(tmp_path / "cache", max_bytes=400_000), tmp_path / f"pod-{number}")

    with ThreadPoolExecutor(8) as pods:
        found = list(pods.map(pod, range(40)))

    assert set(found) == {content}
    assert len(files_of(tmp_path / "cache")) == 1


@pytest.mark.cluster
def test_an_object_of_s3_is_downloaded_once_until_it_is_replaced(
    tmp_path: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    use_keys(monkeypatch, s3)
    with Gateway(s3.endpoint, lambda request, forward: forward(request)) as gateway:

        def pod() -> S3Store:
            cache = FileCache(tmp_path / "cache")
            return S3Store(bucket, endpoint_url=gateway.endpoint, region=REGION, cache=cache)

        def downloads() -> int:
            return sum(request.method == "GET" and request.key == "data/train.tsv" for request in gateway.requests)

        pod().write("data/train.tsv", b"first")
        for name in "ab":
            pod().download("data/train.tsv", tmp_path / name)
            assert (tmp_path / name).read_bytes() == b"first"
        assert downloads() == 1

        pod().write("data/train.tsv", b"other")
        pod().download("data/train.tsv", tmp_path / "c")

        assert (tmp_path / "c").read_bytes() == b"other"
        assert downloads() == 2
