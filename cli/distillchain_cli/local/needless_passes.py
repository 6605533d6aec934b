"""The pass of a teacher that nothing needs, because all that needs it is committed in the store already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_api.failures import StageError
from distillchain_api.graph import Plan, PlannedStage
from distillchain_cli.stores import open_chain_store

if TYPE_CHECKING:
    from distillchain_api.wire.manifest import Manifest
    from distillchain_store.store import Store


def commit_without_pass(plan: Plan, stage: PlannedStage, store: Store | None = None) -> Manifest | None:
    """The manifest of a stage that needs a pass and is committed, if all that needs the pass is; None otherwise.

    Args:
        stage: any vertex of the plan; None is returned for one that is no pass.
        store: of the chain; None: it is opened.
    """
    if not stage.is_pass:
        return None
    from distillchain_store.commit import read_manifest

    found = None
    try:
        store = store or open_chain_store(plan.chain.spec.storage)
        for following in plan.vertices:
            if stage.name in following.needs:
                found = read_manifest(store, following.digest)
                if found is None:
                    return None
    except StageError:  # the trainer of the pass, or of what needs it, gives the reason
        return None
    return found
