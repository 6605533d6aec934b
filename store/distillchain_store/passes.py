"""The commit of a teacher's pass: its files first, then the manifest, conditionally, as in commit.py.

Unlike a student, a pass can be withdrawn: all that is in it can be computed again from its teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from distillchain_api.faults import BadDocument
from distillchain_api.layout import pass_manifest_key, pass_prefix
from distillchain_api.wire.manifest import FileEntry
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_store.commit import upload_folder
from distillchain_store.errors import AGAIN, CheckpointCorrupt, ObjectMissing, StorageUnavailable
from distillchain_store.store import Fingerprint, ReadableStore, Store, discard

log = logging.getLogger(__name__)

RESTORE = f"restore it, or delete the manifest.json of the pass, and {AGAIN}"
RETRY = f"{AGAIN}, and the pass runs again"


def read_pass(store: ReadableStore, digest: str) -> PassManifest | None:
    """The commit of a pass; None when it is not committed. Raises: CheckpointCorrupt when it cannot be read."""
    where = f"{store.uri}/{pass_manifest_key(digest)}"
    try:
        manifest = PassManifest.parse(store.read(pass_manifest_key(digest)))
    except ObjectMissing:
        return None
    except (BadDocument, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointCorrupt(f"{where} cannot be read ({why}); {RESTORE}") from error
    if manifest.digest != digest:
        raise CheckpointCorrupt(f"{where} is the manifest of pass {manifest.digest[:12]}; restore the right one")
    return manifest


def commit_pass(store: Store, manifest: PassManifest, folder: Path) -> PassManifest:
    """Stores all files of `folder` and commits the pass. Returns: the manifest that holds, perhaps of another pod."""
    prefix = pass_prefix(manifest.digest, manifest.attempt)
    entries = upload_folder(store, prefix, folder)
    own = manifest.model_copy(update={"files": entries})
    # The one conditional write that decides which attempt wins.
    if store.create(pass_manifest_key(own.digest), own.to_json().encode()):
        log.info("pass committed", extra={"digest": own.digest, "attempt": own.attempt})
        return own
    winner = read_pass(store, own.digest)
    if winner is None:
        raise StorageUnavailable(
            f"{store.uri}/{pass_manifest_key(own.digest)} was created and then deleted by someone else; find out who "
            "deletes objects in this store"
        )
    if winner.attempt != own.attempt:
        discard(store, f"{prefix}/", [f"{prefix}/{entry.path}" for entry in entries])
    return winner


def download_pass(store: Store, manifest: PassManifest, folder: Path) -> None:
    """Fetches the files of a pass into `folder`, each compared with the manifest.

    Raises: CheckpointCorrupt when one is gone or altered; other errors of the store.
    """

    def download(key: str, entry: FileEntry) -> Fingerprint:
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        return store.download(key, path)

    _compare_files(store, manifest, download)


def verify_pass(store: Store, manifest: PassManifest) -> None:
    """Reads the files of a pass. Raises: CheckpointCorrupt when one is gone or altered; other errors of the store."""
    _compare_files(store, manifest, lambda key, _: store.fingerprint(key))


def _compare_files(store: Store, manifest: PassManifest, fetch: Callable[[str, FileEntry], Fingerprint]) -> None:
    for entry in manifest.files:
        key = f"{pass_prefix(manifest.digest, manifest.attempt)}/{entry.path}"
        try:
            found = fetch(key, entry)
        except ObjectMissing as error:
            raise CheckpointCorrupt(f"{store.uri}/{key} is missing") from error
        if found != Fingerprint(entry.size_bytes, entry.sha256):
            raise CheckpointCorrupt(f"{store.uri}/{key} was altered: its sha256 is not the one in its manifest")


def withdraw_pass(store: Store, manifest: PassManifest) -> str:
    """Deletes the commit of a pass that cannot be used; the outputs that it has stored under `logits/` stay.

    Returns: what the user does next, for the end of a message.
    """
    key, prefix = pass_manifest_key(manifest.digest), pass_prefix(manifest.digest, manifest.attempt)
    holds = read_pass(store, manifest.digest)
    # Another pod may have replaced it already.
    if holds is not None and holds.attempt == manifest.attempt:
        # The manifest first: without it nothing reads the files.
        left = discard(store, key, [key])
        if left is not None:
            return f"it cannot be withdrawn: {left}; delete {key} and {RETRY}"
        log.warning("pass withdrawn", extra={"digest": manifest.digest, "attempt": manifest.attempt})
        discard(store, f"{prefix}/", [f"{prefix}/{entry.path}" for entry in manifest.files])
    return RETRY
