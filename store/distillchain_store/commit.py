"""The commit of a stage: an attempt's files, then the manifest, written conditionally. Exactly one attempt wins."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tenacity

from distillchain_api.faults import BadDocument
from distillchain_api.layout import attempt_prefix, manifest_key
from distillchain_api.wire.manifest import FileEntry, Manifest, OtherContract, parse_manifest
from distillchain_store.errors import CheckpointCorrupt, ObjectMissing, OtherRelease, StorageDenied, StorageUnavailable
from distillchain_store.store import Store, StoredObject, discard

log = logging.getLogger(__name__)

VERIFY_THREADS = 8
RESTORE = "restore it, or delete that stage's manifest.json, and try again (distillchain retry)"
WINNER_S = 10.0  # how long another's manifest may take to be written: some 5 KB


def read_manifest(store: Store, digest: str) -> Manifest | None:
    """The commit of a stage with its checkpoint where it lies now, None when it is not committed.

    Raises: CheckpointCorrupt when it cannot be read or is another stage's, OtherRelease when it is of a release
        with another contract.
    """
    try:
        content = store.read(manifest_key(digest))
    except ObjectMissing:
        return None
    where = f"{store.uri}/{manifest_key(digest)}"
    try:
        manifest = parse_manifest(content)
    except OtherContract as error:
        raise OtherRelease(
            f"{where} was made by another release ({error}); its checkpoint is good: use an image of that release"
        ) from error
    except (BadDocument, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointCorrupt(
            f"{where} cannot be read ({why}); restore it, or delete it, and try again (distillchain retry)"
        ) from error
    if manifest.digest != digest:
        raise CheckpointCorrupt(f"{where} is the manifest of stage {manifest.digest[:12]}; restore the right one")
    # A store may have been copied, moved or mounted elsewhere since.
    return manifest.model_copy(update={"checkpoint": f"{store.uri}/{attempt_prefix(digest, manifest.attempt)}"})


def verify(store: Store, manifest: Manifest) -> None:
    """Reads every committed file. Raises: CheckpointCorrupt naming the first one that differs from the manifest."""
    with ThreadPoolExecutor(VERIFY_THREADS) as pool:
        list(pool.map(lambda entry: _verify_file(store, manifest, entry), manifest.files))


def _verify_file(store: Store, manifest: Manifest, entry: FileEntry) -> None:
    where = f"{manifest.checkpoint}/{entry.path}"
    try:
        found = store.fingerprint(f"{attempt_prefix(manifest.digest, manifest.attempt)}/{entry.path}")
    except ObjectMissing as error:
        raise CheckpointCorrupt(f"{where} is missing; {RESTORE}") from error
    if (found.size_bytes, found.sha256) != (entry.size_bytes, entry.sha256):
        raise corrupt(where, found.size_bytes, entry.size_bytes)


def corrupt(where: str, size_bytes: int, want_bytes: int) -> CheckpointCorrupt:
    """The one sentence for an object that is not what its manifest lists."""
    how = (
        f"has {size_bytes} bytes, its manifest lists {want_bytes}"
        if size_bytes != want_bytes
        else "was altered: its sha256 is not the one in its manifest"
    )
    return CheckpointCorrupt(f"{where} {how}; {RESTORE}")


def prove(store: Store, digest: str, attempt: str) -> None:
    """Shows before any work that its end can be committed: the store takes what is written, and replaces no commit.

    Two small writes; a right that is missing would else be found when the teacher has read all of the data.

    Raises: StorageDenied.
    """
    key = f"{attempt_prefix(digest, attempt)}/store-check"
    store.create(key, b"first")
    replaced = store.create(key, b"second")
    discard(store, key, [key])
    if replaced:
        raise StorageDenied(
            f"spec.storage.uri: {store.uri} lets a second writer replace what a first one wrote, If-None-Match or not: "
            "two pods could commit one stage; use a store with conditional writes, as AWS and SeaweedFS have them"
        )


def upload_attempt(store: Store, digest: str, attempt: str, folder: Path) -> list[FileEntry]:
    """Stores all files of `folder` as an attempt; it is not committed yet. When that fails, none of them stays."""
    prefix = attempt_prefix(digest, attempt)
    entries = []
    try:
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = path.relative_to(folder).as_posix()
            stored = store.upload(f"{prefix}/{name}", path)
            entries.append(FileEntry(path=name, size_bytes=stored.size_bytes, sha256=stored.sha256))
        _check_arrived(store, prefix, entries)
    except BaseException:
        discard(store, prefix + "/")
        raise
    return entries


def _check_arrived(store: Store, prefix: str, entries: list[FileEntry]) -> None:
    """What the store lists is what was sent: nothing is committed that did not arrive."""
    there: dict[str, StoredObject] = {item.key: item for item in store.list_objects(prefix + "/")}
    for entry in entries:
        key = f"{prefix}/{entry.path}"
        if key not in there or there[key].size_bytes != entry.size_bytes:
            raise StorageUnavailable(f"{store.uri}/{key} did not arrive whole in the store; look at the store")


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(CheckpointCorrupt),
    wait=tenacity.wait_fixed(0.5),
    stop=tenacity.stop_after_delay(WINNER_S),
    reraise=True,
)
def _read_winner(store: Store, digest: str) -> Manifest | None:
    """On a volume without hard links a manifest that has just come may not be whole yet."""
    return read_manifest(store, digest)


def commit(store: Store, manifest: Manifest) -> Manifest:
    """Commits, or adopts the commit of who was first: verified, and this attempt's files are deleted.

    Returns: the manifest that holds from now on. Safe to repeat after a lost answer.
    """
    if store.create(manifest_key(manifest.digest), manifest.to_json().encode()):
        log.info("stage committed", extra={"digest": manifest.digest, "attempt": manifest.attempt})
        return manifest
    winner = _read_winner(store, manifest.digest)
    if winner is None:
        raise StorageUnavailable(
            f"{store.uri}/{manifest_key(manifest.digest)} came and went; look at who deletes from the store"
        )
    if winner.attempt == manifest.attempt:
        return winner  # our own, whose answer was lost
    verify(store, winner)
    log.info(
        "another attempt was first; its commit is adopted",
        extra={"digest": winner.digest, "attempt": winner.attempt, "own_attempt": manifest.attempt},
    )
    discard(store, attempt_prefix(manifest.digest, manifest.attempt) + "/")
    return winner
