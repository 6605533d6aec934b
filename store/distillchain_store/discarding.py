"""Withdraws commits on request of the user: a manifest is moved aside, and its files stay where they are.

Saved states are deleted, or the next trainer would continue from them. Stored outputs of teachers are deleted if the
user asks for it: they may come from the same broken GPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable

from distillchain_api.layout import logits_prefix, resume_prefix
from distillchain_store.errors import ObjectMissing, StorageDenied
from distillchain_store.store import Store

log = logging.getLogger(__name__)


def discarded_prefix(manifest: str) -> str:
    """The folder for the discarded versions of a manifest, by its key."""
    return f"{manifest.rpartition('/')[0]}/discarded/"


def discard_commits(store: Store, manifests: Iterable[str]) -> list[str]:
    """Moves manifests to `discarded/` beside them, so that the stages are not committed any more.

    Safe to repeat. To undo it, move the manifest back before another attempt has committed.

    Args:
        manifests: their keys. One that is not there is left out.
    Returns: the keys where they are now.
    Raises: errors of the store.
    """
    moved = []
    for key in manifests:
        try:
            content = store.read(key)
        except ObjectMissing:
            continue
        # By content: the copy of an interrupted call is the same object.
        copy = f"{discarded_prefix(key)}{hashlib.sha256(content).hexdigest()[:12]}.json"
        if not store.create(copy, content):
            if store.read(copy) != content:
                raise StorageDenied(f"{store.uri}/{copy} exists with another content; move it away")
            # Again: garbage collection spares its files for a day from now.
            store.write(copy, content)
        store.delete([key])
        log.info("commit discarded", extra={"manifest": f"{store.uri}/{key}", "copy": f"{store.uri}/{copy}"})
        moved.append(copy)
    return moved


def delete_states(store: Store, digest: str) -> bool:
    """Deletes all saved states of a stage. Returns: whether there were any. Raises: errors of the store."""
    keys = [item.key for item in store.list_objects(resume_prefix(digest))]
    store.delete(keys)
    return bool(keys)


def outputs_used(store: Store, *, manifest: str, states: str | None) -> set[str] | None:
    """The teachers' outputs that a stage, or a pass, has read or computed, as far as it was committed or saved a state.

    Args:
        manifest: its key.
        states: the folder of saved states; None: a pass has none.
    Returns: digests for `logits_prefix`; None if manifest or a state does not say, as in earlier releases.
    Raises: errors of the store.
    """
    keys = [manifest]
    if states is not None:
        keys += [item.key for item in store.list_objects(states) if item.key.endswith("/index.json")]
    found: set[str] = set()
    for key in keys:
        try:
            content = store.read(key)
        except ObjectMissing:
            continue
        try:
            document = json.loads(content)
            logits = document.get("run", document).get("logits")
        except (ValueError, AttributeError):
            return None
        if logits is None:
            return None
        found.update([logits] if isinstance(logits, str) else logits)
    return found


def delete_outputs(store: Store, digests: Iterable[str]) -> int:
    """Deletes outputs of teachers; later stages compute them again. Returns: bytes. Raises: errors of the store."""
    objects = [item for digest in sorted(digests) for item in store.list_objects(logits_prefix(digest))]
    store.delete([item.key for item in objects])
    return sum(item.size_bytes for item in objects)
