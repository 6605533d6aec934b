"""The store: objects under a prefix, with the same semantics on S3 and in a folder.

Whole objects appear at once or not at all; `create` lets exactly one writer win. Knows no stage and no manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from distillchain_store.errors import StoreError

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
PATIENCE_S = 30.0  # longer outages are the Job's retries
NO_PATIENCE_S = 5.0


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing; `key` is relative to the store."""

    key: str
    size_bytes: int


@dataclass(frozen=True)
class Fingerprint:
    """What an object's content is."""

    size_bytes: int
    sha256: str


class Store(Protocol):
    """Objects under `uri`. Keys are relative, with slashes.

    Raises, from every method: StorageDenied, StorageUnavailable, DiskFull.
    """

    uri: str
    patience: Callable[[], float]
    """For how many seconds an outage is waited out before StorageUnavailable; asked again while it lasts."""

    def read(self, key: str) -> bytes:
        """The content. Raises: ObjectMissing."""

    def write(self, key: str, content: bytes) -> None:
        """Replaces what was there."""

    def create(self, key: str, content: bytes) -> bool:
        """Writes unless there is such an object already (then False); of many writers at once one wins."""

    def upload(self, key: str, path: Path) -> Fingerprint:
        """Stores a file and returns what was stored."""

    def download(self, key: str, path: Path) -> Fingerprint:
        """Fetches into `path` and returns what came. Raises: ObjectMissing."""

    def fingerprint(self, key: str) -> Fingerprint:
        """Reads the whole object. Raises: ObjectMissing."""

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """All objects whose key starts with `prefix`, in order of key."""

    def delete(self, keys: list[str]) -> None:
        """Deletes; one that is not there is fine."""


def open_store(uri: str, *, endpoint_url: str | None, region: str | None, field: str = "spec.storage.uri") -> Store:
    """The store at an s3:// or file:// URI, which a person named in `field`."""
    if uri.startswith("s3://"):
        from distillchain_store.s3 import S3Store  # boto3 takes half a second to import

        return S3Store(uri, endpoint_url=endpoint_url, region=region, field=field)
    from distillchain_store.folder import FileStore

    return FileStore(uri, field=field)


@contextlib.contextmanager
def with_patience(store: Store, seconds: Callable[[], float]) -> Iterator[None]:
    """Within, outages are waited out for as long as `seconds` says."""
    before, store.patience = store.patience, seconds
    try:
        yield
    finally:
        store.patience = before


def discard(store: Store, prefix: str, keys: Sequence[str] | None = None) -> None:
    """Deletes what nobody reads any more: `keys`, or all below `prefix`. That the store keeps it is only logged."""
    try:
        with with_patience(store, lambda: NO_PATIENCE_S):  # it may be why one is here
            store.delete([item.key for item in store.list_objects(prefix)] if keys is None else list(keys))
    except StoreError as error:
        log.warning(
            "the store does not delete what nobody reads any more",
            extra={"objects": f"{store.uri}/{prefix}", "why": str(error)},
        )


def fingerprint_of(path: Path) -> Fingerprint:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return fingerprint_stream(file)


def fingerprint_stream(stream: BinaryIO) -> Fingerprint:
    """Size and sha256 of what is left in a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return Fingerprint(size, digest.hexdigest())


def path_of_uri(uri: str) -> Path:
    """The absolute path of a file:// URI."""
    return Path(os.path.normpath(uri.removeprefix("file://")))
