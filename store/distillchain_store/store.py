"""The store protocol: objects under a prefix, with the same semantics on S3 and in a folder.

An object appears whole or not at all; `create` lets exactly one writer win. Knows no stage and no manifest.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from distillchain_store.errors import StoreError
from distillchain_store.patience import QUICK_S, Patience, with_patience

log = logging.getLogger(__name__)

# 1 MiB at a time, so that a checkpoint of any size is hashed in little memory.
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing.

    Attributes:
        key: relative to the store.
        modified_s: when it was last written, by the store's clock, in seconds since the epoch.
    """

    key: str
    size_bytes: int
    modified_s: float


@dataclass(frozen=True)
class Unfinished:
    """A write that began and did not end: a part of a file, or the parts of an upload.

    Attributes:
        key: the object that it would have become, relative to the store.
        handle: what the store knows it by.
        size_bytes: what is there of it; 0 where the store does not say.
        started_s: when it began, in seconds since the epoch.
    """

    key: str
    handle: str
    size_bytes: int
    started_s: float


@dataclass(frozen=True)
class Fingerprint:
    """Identifies the content of an object."""

    size_bytes: int
    sha256: str


class ReadableStore(Protocol):
    """As much of a store as a verified read needs."""

    @property
    def uri(self) -> str:
        """Where it is."""

    def read(self, key: str) -> bytes:
        """The content of an object. Raises: ObjectMissing."""


class Store(Protocol):
    """Objects under `uri`. Keys are relative, with slashes.

    Raises, from every method: StorageDenied, StorageUnavailable, DiskFull.
    """

    uri: str
    patience: Patience
    """For how many seconds an outage is waited out before StorageUnavailable; see the module `patience`."""

    def read(self, key: str) -> bytes:
        """The content. Raises: ObjectMissing."""

    def write(self, key: str, content: bytes) -> None:
        """Writes an object, or replaces it."""

    def create(self, key: str, content: bytes) -> bool:
        """Writes the object unless it exists, and returns whether it did; of concurrent writers exactly one wins."""

    def upload(self, key: str, path: Path) -> Fingerprint:
        """Stores a file. Returns: the fingerprint of what was stored."""

    def download(self, key: str, path: Path) -> Fingerprint:
        """Fetches an object into the file `path`. Returns: the fingerprint of what arrived. Raises: ObjectMissing."""

    def size(self, key: str) -> int:
        """Bytes of an object, asked for directly: a listing may lag behind. Raises: ObjectMissing."""

    def fingerprint(self, key: str) -> Fingerprint:
        """Reads the whole object. Raises: ObjectMissing."""

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """All objects whose key starts with `prefix`, sorted by key."""

    def delete(self, keys: list[str]) -> None:
        """Deletes objects; a missing one is not an error."""

    def list_unfinished(self, prefix: str) -> list[Unfinished]:
        """Writes that began and did not end: they take space, and no listing shows them."""

    def abandon(self, writes: list[Unfinished]) -> None:
        """Deletes unfinished writes; a missing one is not an error."""


def discard(store: Store, prefix: str, keys: Sequence[str] | None = None) -> str | None:
    """Deletes objects that are no longer needed: `keys`, or everything below `prefix`. Never raises a StoreError.

    Returns: None, or one sentence that says what stays behind and why, for a warning of the stage.
    """
    try:
        # Often called while an error is handled that the outage caused: a long wait would only delay its report.
        with with_patience(store, QUICK_S):
            store.delete([item.key for item in store.list_objects(prefix)] if keys is None else list(keys))
    except StoreError as error:
        log.warning("objects were not deleted", extra={"objects": f"{store.uri}/{prefix}", "why": str(error)})
        return f"objects under {store.uri}/{prefix} could not be deleted and stay there ({error})"
    return None


def fingerprint_of(path: Path) -> Fingerprint:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return fingerprint_stream(file)


def fingerprint_stream(stream: BinaryIO) -> Fingerprint:
    """Size and sha256 of the rest of a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return Fingerprint(size, digest.hexdigest())


def path_of_uri(uri: str) -> Path:
    """The absolute path of a file:// URI."""
    return Path(os.path.normpath(uri.removeprefix("file://")))
