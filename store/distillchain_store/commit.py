"""The commit of a stage: an attempt's files first, then the manifest, conditionally. Exactly one attempt wins."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tenacity

from distillchain_api.faults import BadDocument
from distillchain_api.layout import attempt_prefix, manifest_key
from distillchain_api.wire.manifest import FileEntry, Manifest, OtherContract, parse_manifest
from distillchain_store.errors import (
    AGAIN,
    CheckpointCorrupt,
    ObjectMissing,
    OtherRelease,
    StorageDenied,
    StorageUnavailable,
)
from distillchain_store.store import ReadableStore, Store, discard
from distillchain_store.verified import verify

log = logging.getLogger(__name__)

# Requests at a time; each waits for the network, hardly for a CPU.
CHECK_THREADS = 8
WINNER_S = 10.0  # how long another pod may take to write its manifest, some 5 KB


def read_manifest(store: ReadableStore, digest: str) -> Manifest | None:
    """The commit of a stage, with its checkpoint at the place where it is now; None when the stage is not committed.

    Raises: CheckpointCorrupt when it cannot be read or belongs to another stage; OtherRelease when a release with
        another contract wrote it.
    """
    try:
        content = store.read(manifest_key(digest))
    except ObjectMissing:
        return None
    where = f"{store.uri}/{manifest_key(digest)}"
    try:
        manifest = parse_manifest(content)
    except OtherContract as error:
        # Before BadDocument, its base class: the advice there is to delete the manifest, and this one is intact.
        raise OtherRelease(
            f"{where} was made by another release ({error}); its checkpoint is good: use an image of that release"
        ) from error
    except (BadDocument, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointCorrupt(f"{where} cannot be read ({why}); restore it, or delete it, and {AGAIN}") from error
    # A file restored under the wrong key parses well, but describes the student of another stage.
    if manifest.digest != digest:
        raise CheckpointCorrupt(f"{where} is the manifest of stage {manifest.digest[:12]}; restore the right one")
    # The store may have been copied, moved or mounted elsewhere since the commit.
    return manifest.model_copy(update={"checkpoint": f"{store.uri}/{manifest.checkpoint_prefix}"})


def prove(store: Store, digest: str, attempt: str) -> str | None:
    """Checks before any work that this store can take a commit: it accepts writes and does not replace a commit.

    Two small writes. Without them a missing right would be noticed only after the teacher has read all data.

    Returns: None, or a sentence for a warning when the store does not delete: resume states and losing attempts will
        stay there too.
    Raises: StorageDenied.
    """
    key = f"{attempt_prefix(digest, attempt)}/store-check"
    store.create(key, b"first")
    # A server that ignores If-None-Match answers with success; only a second write of the same key shows it.
    replaced = store.create(key, b"second")
    leftover = discard(store, key, [key])
    if replaced:
        raise StorageDenied(
            f"spec.storage.uri: {store.uri} lets a second writer replace what a first one wrote, in spite of "
            "If-None-Match, so two pods could commit one stage; use a store with conditional writes, such as AWS S3 or "
            "SeaweedFS"
        )
    return leftover


def upload_attempt(store: Store, digest: str, attempt: str, folder: Path) -> list[FileEntry]:
    """Stores all files of `folder` as an attempt, without committing it. If that fails, deletes what was stored."""
    return upload_folder(store, attempt_prefix(digest, attempt), folder)


def upload_folder(store: Store, prefix: str, folder: Path) -> list[FileEntry]:
    """Stores all files of `folder` and checks that they arrived. If that fails, deletes what was stored."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    entries = []
    try:
        for name, path in paths.items():
            stored = store.upload(f"{prefix}/{name}", path)
            entries.append(FileEntry(path=name, size_bytes=stored.size_bytes, sha256=stored.sha256))
        _check_arrived(store, prefix, entries)
    except BaseException:
        # Also for a stop (StopRequested): nothing may stay that no manifest lists.
        # By name: in a store whose listings lag, a listing would miss the newest objects.
        discard(store, f"{prefix}/", [f"{prefix}/{name}" for name in paths])
        raise
    return entries


def _check_arrived(store: Store, prefix: str, entries: list[FileEntry]) -> None:
    """Asks for each object by itself: a listing may lag behind, and a commit must not list what did not arrive."""

    def check(entry: FileEntry) -> None:
        key = f"{prefix}/{entry.path}"
        try:
            arrived = store.size(key) == entry.size_bytes
        except ObjectMissing:
            arrived = False
        if not arrived:
            raise StorageUnavailable(f"{store.uri}/{key} did not arrive complete in the store; check the store")

    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        # list(), because map() raises the exception of a check only when its result is read.
        list(pool.map(check, entries))


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(CheckpointCorrupt),
    wait=tenacity.wait_fixed(0.5),
    stop=tenacity.stop_after_delay(WINNER_S),
    reraise=True,
)
def _read_winner(store: Store, digest: str) -> Manifest | None:
    """On a volume without hard links, a manifest that has just appeared may not be complete yet."""
    return read_manifest(store, digest)


def commit(store: Store, manifest: Manifest) -> Manifest:
    """Commits the attempt. If another attempt was first, verifies and adopts its commit and deletes this one's files.

    Safe to repeat after a lost answer.

    Returns: the manifest that is valid from now on.
    """
    # All files are in the store by now. This one conditional write decides which attempt wins.
    if store.create(manifest_key(manifest.digest), manifest.to_json().encode()):
        log.info("stage committed", extra={"digest": manifest.digest, "attempt": manifest.attempt})
        return manifest
    winner = _read_winner(store, manifest.digest)
    if winner is None:
        raise StorageUnavailable(
            f"{store.uri}/{manifest_key(manifest.digest)} was created and then deleted by someone else; find out who "
            "deletes objects in this store"
        )
    if winner.attempt == manifest.attempt:
        return winner  # this attempt's own commit, whose answer was lost
    # Read whole now: this stage reports the winner's checkpoint as its result, and the next stage is taught by it.
    verify(store, winner)
    log.info(
        "another attempt was first; its commit is adopted",
        extra={"digest": winner.digest, "attempt": winner.attempt, "own_attempt": manifest.attempt},
    )
    # By name, for the same reason as in upload_attempt.
    prefix = attempt_prefix(manifest.digest, manifest.attempt)
    discard(store, f"{prefix}/", [f"{prefix}/{entry.path}" for entry in manifest.files])
    return winner
