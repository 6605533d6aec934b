"""Reads committed files and compares each with its manifest: what is used is what was committed."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distillchain_api.layout import CHECKPOINT_FOLDER, attempt_prefix
from distillchain_api.wire.manifest import FileEntry, Manifest
from distillchain_store.cache import FileCache
from distillchain_store.errors import AGAIN, CheckpointCorrupt, ObjectMissing
from distillchain_store.store import Fingerprint, ReadableStore, Store

# Objects at a time; reading from S3 waits for the network most of the time.
VERIFY_THREADS = 8
RESTORE = f"restore it, or delete that stage's manifest.json, and {AGAIN}"


def read_file(store: ReadableStore, manifest: Manifest, path: str) -> bytes:
    """The content of one committed file.

    Args:
        path: as `Manifest.files` names it.
    Raises: ObjectMissing when the manifest does not list it; CheckpointCorrupt when it is gone or altered.
    """
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        raise ObjectMissing(f"{_where(store, manifest, path)} was not kept when this stage was committed")
    try:
        content = store.read(_key(manifest, path))
    except ObjectMissing as error:
        # The manifest lists the file, so its absence is damage and not just a missing object.
        raise _missing(store, manifest, path) from error
    _compare(store, manifest, entry, Fingerprint(len(content), hashlib.sha256(content).hexdigest()))
    return content


def download_file(
    store: Store, manifest: Manifest, entry: FileEntry, folder: Path, *, cache: FileCache | None = None
) -> None:
    """Fetches one committed file into `folder`. Raises: CheckpointCorrupt when it is gone or altered."""
    path = folder / entry.path

    def download() -> Fingerprint:
        return store.download(_key(manifest, entry.path), path)

    try:
        found = cache.fetch_known(entry.sha256, path, download) if cache else download()
    except ObjectMissing as error:
        raise _missing(store, manifest, entry.path) from error
    _compare(store, manifest, entry, found)


def download_checkpoint(store: Store, manifest: Manifest, to: Path) -> None:
    """Fetches a committed checkpoint into the new folder `to`, which appears only when every file is verified.

    Args:
        to: must not exist, or be an empty folder.
    Raises: CheckpointCorrupt when a file is gone or altered; DiskFull; other errors of the store; OSError when the
        folder cannot be created.
    """
    # Beside its place, so that the last step is a rename on the same file system.
    part = to.with_name(f"{to.name}.part-{uuid.uuid4().hex}")
    # Not left to the store, which would take the refusal for its own.
    part.mkdir()
    try:
        with ThreadPoolExecutor(VERIFY_THREADS) as pool:
            # list(), because map() raises an exception only when the result is read.
            list(pool.map(lambda entry: download_file(store, manifest, entry, part), manifest.checkpoint_files))
        source = part / CHECKPOINT_FOLDER if manifest.has_folders else part
        source.rename(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def verify(store: Store, manifest: Manifest) -> None:
    """Reads every committed file. Raises: CheckpointCorrupt naming one that differs from the manifest."""
    with ThreadPoolExecutor(VERIFY_THREADS) as pool:
        # list(), because map() raises an exception only when the result is read.
        list(pool.map(lambda entry: _verify_file(store, manifest, entry), manifest.files))


def _verify_file(store: Store, manifest: Manifest, entry: FileEntry) -> None:
    try:
        found = store.fingerprint(_key(manifest, entry.path))
    except ObjectMissing as error:
        raise _missing(store, manifest, entry.path) from error
    _compare(store, manifest, entry, found)


def _compare(store: ReadableStore, manifest: Manifest, entry: FileEntry, found: Fingerprint) -> None:
    if (found.size_bytes, found.sha256) == (entry.size_bytes, entry.sha256):
        return
    how = (
        f"has {found.size_bytes} bytes, its manifest lists {entry.size_bytes}"
        if found.size_bytes != entry.size_bytes
        else "was altered: its sha256 is not the one in its manifest"
    )
    raise CheckpointCorrupt(f"{_where(store, manifest, entry.path)} {how}; {RESTORE}")


def _missing(store: ReadableStore, manifest: Manifest, path: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"{_where(store, manifest, path)} is missing; {RESTORE}")


def _where(store: ReadableStore, manifest: Manifest, path: str) -> str:
    """Where the file is now. A store may have been copied or mounted elsewhere since the manifest was written."""
    return f"{store.uri}/{_key(manifest, path)}"


def _key(manifest: Manifest, path: str) -> str:
    return f"{attempt_prefix(manifest.digest, manifest.attempt)}/{path}"
