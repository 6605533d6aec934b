"""The store in a folder: on a local disk, or on a volume that all pods of a chain mount."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from distillchain_store.errors import FULL, ObjectMissing, StorageDenied, StorageUnavailable, disk_full
from distillchain_store.patience import NORMAL_S, Patience
from distillchain_store.store import Fingerprint, StoredObject, Unfinished, fingerprint_of, path_of_uri

PART_MARK = ".part-"  # marks files that are still being written; they are never listed
PART_NAME = re.compile(rf"(?P<key>.+){re.escape(PART_MARK)}[0-9a-f]{{32}}")
# No retry helps: no right to the place, a read-only volume, or a file where a folder should be.
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
# What link(2) reports where it is not supported depends on the file system. EMLINK: the file has too many links.
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class FileStore:
    """Objects are files below `uri`. A write appears by rename, `create` by a hard link, which only one writer gets."""

    def __init__(self, uri: str, *, field: str = "spec.storage.uri") -> None:
        self.uri = uri
        self.patience: Patience = lambda: NORMAL_S  # never used: a mounted volume waits by itself
        self._root = path_of_uri(uri)
        self._field = field

    def read(self, key: str) -> bytes:
        """See Store."""
        with self._errors(key):
            return self._path(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """See Store."""
        with self._errors(key), self._part(key) as part:
            _write_through(part, content)
            # A rename is atomic: a reader sees the old content or the new one, never a part of it.
            part.replace(self._path(key))
            self._settle(key)

    def create(self, key: str, content: bytes) -> bool:
        """See Store."""
        path = self._path(key)
        with self._errors(key), self._part(key) as part:
            _write_through(part, content)
            try:
                # Unlike a rename, a link fails if the name exists, so exactly one writer wins.
                path.hardlink_to(part)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                created = _create_without_links(path, content)
                self._settle(key)
                return created
            self._settle(key)
        return True

    def upload(self, key: str, path: Path) -> Fingerprint:
        """See Store."""
        with self._errors(key), self._part(key) as part:
            sent = fingerprint_of(path)
            shutil.copyfile(path, part)
            # The copy is read back: its fingerprint goes into the manifest, which must describe the stored bytes.
            if fingerprint_of(part) != sent:
                raise StorageUnavailable(
                    f"{self._field}: {self.uri}/{key} differs from what was written; check the disk"
                )
            # Before the rename, or after a crash of the node the name could point to missing content.
            _sync(part)
            part.replace(self._path(key))
            self._settle(key)
        return sent

    def download(self, key: str, path: Path) -> Fingerprint:
        """See Store."""
        with self._errors(key, writes_to=path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._path(key), path)
            return fingerprint_of(path)

    def size(self, key: str) -> int:
        """See Store."""
        with self._errors(key):
            return self._path(key).stat().st_size

    def fingerprint(self, key: str) -> Fingerprint:
        """See Store."""
        with self._errors(key):
            return fingerprint_of(self._path(key))

    def list_objects(self, prefix: str) -> list[StoredObject]:
        """See Store."""
        found = [
            StoredObject(key, stat.st_size, stat.st_mtime)
            for key, stat in self._walk(prefix)
            if PART_MARK not in key.rpartition("/")[2]
        ]
        return sorted(found, key=lambda item: item.key)

    def list_unfinished(self, prefix: str) -> list[Unfinished]:
        """See Store."""
        found = []
        for path, stat in self._walk(prefix):
            # Files of others, such as the output of split(1), may have similar names.
            if match := PART_NAME.fullmatch(path):
                found.append(Unfinished(match["key"], path, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda write: write.handle)

    def abandon(self, writes: list[Unfinished]) -> None:
        """See Store."""
        self.delete([write.handle for write in writes])

    def _walk(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every file whose path from the root starts with `prefix`, also those that are still being written."""
        with self._errors(prefix):
            # The deepest folder above all matching keys: a walk from the root would visit every stage in the store.
            top = self._root / prefix.rpartition("/")[0]
            # os.walk ignores errors by default: an outage of a network volume would look like an empty store.
            # Folders may be links to other disks: objects in them can be read, so they must be listed too.
            for folder, folders, names in os.walk(top, onerror=_raise_unless_gone, followlinks=True):
                folders[:] = [name for name in folders if not _leads_back(Path(folder) / name)]
                for path in (Path(folder) / name for name in names):
                    key = path.relative_to(self._root).as_posix()
                    if key.startswith(prefix):
                        with contextlib.suppress(FileNotFoundError):  # another pod may delete meanwhile
                            yield key, path.stat()

    def delete(self, keys: list[str]) -> None:
        """See Store. Also removes folders that become empty."""
        for key in keys:
            path = self._path(key)
            with self._errors(key):
                path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or self._root not in folder.parents:
                    break
                try:
                    # Fails if it is not empty, and then those above it are not either; or if another pod removes the
                    # same folders at this moment.
                    folder.rmdir()
                except OSError:
                    break

    def _path(self, key: str) -> Path:
        return self._root / key

    def _settle(self, key: str) -> None:
        """Syncs the folders of a file, so that its name survives a crash: a manifest must not outlive its files."""
        for folder in self._path(key).parents:
            with contextlib.suppress(FileNotFoundError):  # another pod's `delete` removed it
                _sync(folder)
            if folder == self._root:
                break

    @contextlib.contextmanager
    def _part(self, key: str) -> Iterator[Path]:
        """A file beside the object's place, to be written and then renamed; removed at the end."""
        path = self._path(key)
        # A name of its own, because two pods may write the same key at the same time.
        part = path.with_name(f"{path.name}{PART_MARK}{uuid.uuid4().hex}")
        for last_try in (False, True):  # another pod's `delete` may remove the empty folder between mkdir and touch
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                part.touch()
                break
            except FileNotFoundError as error:
                if last_try:  # not another pod: the file system does not allow a folder there, as in /proc
                    raise self._refused(key, error) from error
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self, key: str, *, writes_to: Path | None = None) -> Iterator[None]:
        """Translates errors of the file system. `writes_to`: the local file that is written, if not the object."""
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self.uri}/{key}: no such object") from error
        except OSError as error:
            where = f"{self.uri}/{key}"
            if error.errno in FULL:
                raise disk_full(str(writes_to or where)) from error
            if error.errno in REFUSALS:
                raise self._refused(key, error) from error
            # Anything else, such as EIO or ESTALE of a network volume, may pass.
            raise StorageUnavailable(f"{self._field}: {where}: {error.strerror}") from error

    def _refused(self, key: str, error: OSError) -> StorageDenied:
        return StorageDenied(
            f"{self._field}: {self.uri}/{key} is refused by the file system ({error.strerror}); "
            "give the trainer's user the right to it, or name another folder"
        )


def _raise_unless_gone(error: OSError) -> None:
    """A folder that disappears during a listing is empty; any other error would make the listing incomplete."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _leads_back(path: Path) -> bool:
    """Whether this is a link to a folder above itself: a walk through it would not end."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _create_without_links(path: Path, content: bytes) -> bool:
    """For volumes without hard links. Only one writer can create the name, but a crash leaves an incomplete file there.

    A reader then reports a corrupt manifest; it never takes the incomplete one for a commit.
    """
    opened: list[int] = []
    try:
        # Not `descriptor = os.open(...)`: a signal handler may run before the assignment, which would leave an empty
        # file. None runs within extend().
        opened.extend(map(os.open, [path], [os.O_WRONLY | os.O_CREAT | os.O_EXCL], [0o644]))
        with os.fdopen(opened[0], "wb", closefd=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except BaseException:
        if opened:
            path.unlink(missing_ok=True)
        raise
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True
