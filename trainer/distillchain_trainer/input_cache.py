"""The cache of models and data on a volume, if the pod has one. See distillchain_store.cache."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path

from distillchain_api.wire.work_order import CACHE_BYTES_ENV, CACHE_ENV
from distillchain_store.cache import FileCache
from distillchain_store.store import CHUNK_BYTES
from distillchain_trainer.errors import WorkOrderInvalid

HUB_FOLDER = "hub"
SHA1, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


def input_cache() -> FileCache | None:
    """The cache that the environment names. Raises: WorkOrderInvalid for a size that is no number."""
    folder, size = os.environ.get(CACHE_ENV, ""), os.environ.get(CACHE_BYTES_ENV, "")
    if not folder:
        return None
    if size and not (size.isdecimal() and int(size)):
        raise WorkOrderInvalid(f"{CACHE_BYTES_ENV}: got {size!r}, expected a number of bytes above 0; empty: no limit")
    return _opened(folder, int(size) if size else None)


@functools.cache
def _opened(folder: str, max_bytes: int | None) -> FileCache:
    # One object for the whole stage, which collects what does not work.
    return FileCache(Path(folder), max_bytes=max_bytes)


def hub_folder() -> Path | None:
    """Where the client of the hub keeps its files, in a layout of its own; None: in the folder of the stage."""
    folder = os.environ.get(CACHE_ENV)
    if not folder:
        return None
    place = Path(folder) / HUB_FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return place if os.access(place, os.W_OK) else None


def is_altered(path: Path) -> bool:
    """Whether a file of the hub's client is not what its name says. It names a file by sha256, or by git's sha1."""
    name = path.resolve().name
    if SHA256.fullmatch(name):
        return _hash_of(path, "sha256") != name
    if SHA1.fullmatch(name):
        header = b"blob %d\0" % path.stat().st_size
        # Mirrors of the hub may give the sha1 of the content alone.
        return name not in (_hash_of(path, "sha1", header), _hash_of(path, "sha1"))
    return False  # an ETag of another kind says nothing about the content


def _hash_of(path: Path, kind: str, header: bytes = b"") -> str:
    digest = hashlib.new(kind, header, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
