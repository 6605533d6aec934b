"""A folder with fetched files, shared by the stages and pods that mount it: what one has fetched, no other fetches.

Files are named by the sha256 of their content, and each is verified when it is taken. What a URI stands for is noted by
the version of the object, so an object that was replaced is fetched again. A cache that fails is never an error: the
file is fetched from where it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from distillchain_store.errors import FULL, disk_full
from distillchain_store.store import CHUNK_BYTES, Fingerprint

log = logging.getLogger(__name__)

PART_MARK = ".part-"
PART_S = 24 * 3600  # a part that is older belongs to a pod that was killed while it wrote
SHA256 = re.compile("[0-9a-f]{64}")


class FileCache:
    """Files in `folder`.

    Pods may use it at the same time: a file appears by a rename, and two that fetch the same file write the same bytes.

    Args:
        max_bytes: files that were not taken for longest are deleted to stay below it; None: no limit.

    Attributes:
        faults: sentences for the user about what does not work.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        self.faults: list[str] = []
        self._files, self._sources = folder / "files", folder / "sources"
        self._folder, self._max_bytes = folder, max_bytes

    def fetch(self, source: Callable[[], str], path: Path, download: Callable[[], Fingerprint]) -> Fingerprint:
        """The file `path` with the content of an object, from here or by `download`.

        Args:
            source: names the object and its version; asked again after a download.
        Raises: DiskFull where `path` is; whatever `source` and `download` raise.
        """
        name = source()
        sha256 = self._noted(name)
        found = self._take(sha256, path) if sha256 else None
        if found is not None:
            return found
        fetched = download()
        # The object may have been replaced between the two requests, and then this is the content of another version.
        if self._keep(path, fetched) and source() == name:
            self._note(name, fetched.sha256)
        return fetched

    def fetch_known(self, sha256: str, path: Path, download: Callable[[], Fingerprint]) -> Fingerprint:
        """As `fetch`, for content whose sha256 is known, as a manifest lists it."""
        found = self._take(sha256, path)
        if found is not None:
            return found
        fetched = download()
        if fetched.sha256 == sha256:
            self._keep(path, fetched)
        return fetched

    def _take(self, sha256: str, path: Path) -> Fingerprint | None:
        """Copies a file to `path`. Returns: its fingerprint; None if it is not here, or was altered and is deleted."""
        cached = self._place(sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            copied = _copy(cached, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(str(path)) from error
            self._failed("read", error)
            return None
        if copied.sha256 != sha256:
            log.warning("an altered file of the cache is fetched again", extra={"file": str(cached)})
            with contextlib.suppress(OSError):
                cached.unlink()
            return None
        # The time of use decides what is deleted first.
        with contextlib.suppress(OSError):
            os.utime(cached)
        return copied

    def _keep(self, path: Path, content: Fingerprint) -> bool:
        """Copies a file into the cache. Returns: whether it is there."""
        place = self._place(content.sha256)
        if self._max_bytes is not None and content.size_bytes > self._max_bytes:
            return False
        # In the folder of the file, because a rename does not cross file systems.
        part = place.with_name(f"{PART_MARK}{uuid.uuid4().hex}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(content.size_bytes)
            shutil.copyfile(path, part)
            part.replace(place)
        except OSError as error:
            self._failed("written", error)
            return False
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return True

    def _make_room(self, size_bytes: int) -> None:
        """Deletes leftovers of killed pods, and the files that were not taken for longest."""
        if self._max_bytes is None and not any(self._files.rglob(f"{PART_MARK}*")):
            return
        files, left_bytes = [], size_bytes
        for item in self._files.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another pod makes room too
                state = item.stat()
                if not item.is_file():
                    continue
                if item.name.startswith(PART_MARK) and time.time() - state.st_mtime > PART_S:
                    item.unlink()
                    continue
                files.append((state.st_mtime, state.st_size, item))
                left_bytes += state.st_size
        for _, size, item in sorted(files):
            if self._max_bytes is None or left_bytes <= self._max_bytes:
                return
            if not item.name.startswith(PART_MARK):  # another pod is writing it
                item.unlink(missing_ok=True)
                left_bytes -= size

    def _noted(self, source: str) -> str | None:
        try:
            sha256 = self._note_of(source).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        # A crash of the node can leave an empty note.
        return sha256 if SHA256.fullmatch(sha256) else None

    def _note(self, source: str, sha256: str) -> None:
        note = self._note_of(source)
        part = note.with_name(f"{PART_MARK}{uuid.uuid4().hex}")
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(sha256, encoding="ascii")
            part.replace(note)
        except OSError as error:
            self._failed("written", error)

    def _note_of(self, source: str) -> Path:
        # Hashed, because a URI may be longer than a file name.
        return self._sources / hashlib.sha256(source.encode()).hexdigest()

    def _place(self, sha256: str) -> Path:
        return self._files / sha256[:2] / sha256

    def _failed(self, what: str, error: OSError) -> None:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)
        self.add_fault(what, reason, is_full=error.errno in FULL)

    def add_fault(self, what: str, reason: str, *, is_full: bool) -> None:
        """Notes what does not work, for the user; `what` is "read" or "written"."""
        remedy = "free its volume, or limit the cache" if is_full else "let the trainer's user read and write it"
        sentence = f"the cache {self._folder} cannot be {what} ({reason}); files are fetched again instead: {remedy}"
        # Each file fails for the same reason.
        if sentence not in self.faults:
            self.faults.append(sentence)


def _copy(source: Path, target: Path) -> Fingerprint:
    """Copies a file, and hashes the bytes that are written: what was read once cannot differ from what is used."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return Fingerprint(size, digest.hexdigest())
