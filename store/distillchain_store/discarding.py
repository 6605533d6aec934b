"""Withdraws commits on request of the user: a manifest is moved aside, and its files stay where they are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

from distillchain_store.errors import ObjectMissing, StorageDenied
from distillchain_store.store import Store

log = logging.getLogger(__name__)


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
        copy = f"{key.rpartition('/')[0]}/discarded/{hashlib.sha256(content).hexdigest()[:12]}.json"
        if not store.create(copy, content) and store.read(copy) != content:
            raise StorageDenied(f"{store.uri}/{copy} exists with another content; move it away")
        store.delete([key])
        log.info("commit discarded", extra={"manifest": f"{store.uri}/{key}", "copy": f"{store.uri}/{copy}"})
        moved.append(copy)
    return moved
