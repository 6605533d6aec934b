"""Whether a committed pass of a teacher can still be used. Imports no torch: a pass is adopted without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from distillchain_api.layout import manifest_key
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_api.wire.work_order import TeacherRef
from distillchain_store.commit import read_manifest
from distillchain_store.errors import AGAIN, CheckpointCorrupt
from distillchain_store.passes import RETRY, withdraw_pass
from distillchain_store.store import Store
from distillchain_trainer.models.checkpoints import digest_of_committed
from distillchain_trainer.stage.context import Context


def read_teacher(store: Store, teacher: TeacherRef) -> Manifest:
    """The commit of a stage that teaches. Raises: CheckpointCorrupt when there is none."""
    assert teacher.digest is not None
    manifest = read_manifest(store, teacher.digest)
    # A stage starts only when its teacher is committed, so the manifest was deleted since.
    if manifest is None:
        raise CheckpointCorrupt(
            f"{store.uri}/{manifest_key(teacher.digest)} is missing: stage {teacher.name}, which teaches this one, is "
            f"no longer committed; {AGAIN}, and stage {teacher.name} runs again first"
        )
    return manifest


def check_same_teacher(context: Context, known: PassManifest) -> None:
    """That the pass has asked the checkpoint that its teacher has now. Raises: CheckpointCorrupt.

    A teacher outside of the chain is not looked at: the stage does not read its weights. If someone replaces what is
    behind a URI, committed stages stay as well.
    """
    teacher = context.order.teacher
    assert teacher is not None
    if teacher.digest is None:
        return
    committed = read_teacher(context.store, teacher)
    # The digest of a stage is that of its recipe. If it was trained again, it may have other weights.
    if digest_of_committed(committed) != known.teacher_files:
        with withdrawn_if_unusable(context, known):
            raise CheckpointCorrupt(
                f"stage {teacher.name} was trained again after its pass {known.digest[:12]}, which used other weights"
            )


@contextlib.contextmanager
def withdrawn_if_unusable(context: Context, manifest: PassManifest) -> Iterator[None]:
    """Within, CheckpointCorrupt deletes the commit of the pass, so that its Job makes it again."""
    try:
        yield
    except CheckpointCorrupt as error:
        # Every rank finds the same, and rank 0 alone writes to the store.
        remedy = withdraw_pass(context.store, manifest) if context.world.is_main else RETRY
        raise CheckpointCorrupt(f"{error}; {remedy}") from error
