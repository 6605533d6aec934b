"""One stage from work order to answer: adopt what is committed, or prepare, compute and commit."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.work_order import WorkOrder
from distillchain_store import commit as store_commit
from distillchain_store.opening import open_store
from distillchain_store.verified import verify
from distillchain_trainer.engine.ranks.world import join_world
from distillchain_trainer.engine.training.saved_state import clear_states
from distillchain_trainer.gpus import check_gpus_are_seen
from distillchain_trainer.libraries import import_libraries
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.answer import answer_of
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.export import read_committed, with_exports
from distillchain_trainer.stage.gates import check_gates
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage.report import ensure_report, renew_report
from distillchain_trainer.stage.teacher_pass import run_pass
from distillchain_trainer.stage.verdict import run_verdict
from distillchain_trainer.stage_warnings import StageWarnings

log = logging.getLogger(__name__)


def run_stage(
    order: WorkOrder,
    *,
    attempt: str,
    folder: Path,
    reporter: Reporter,
    signals: Signals,
    warnings: StageWarnings | None = None,
    on_committed: Callable[[Committed], None] | None = None,
    fitting_rows: int | None = None,
) -> Committed:
    """Carries out a work order, or adopts what is committed already.

    With several processes, by the variables of torch's launcher, each of them calls this and gets the same answer.
    Rank 0 alone talks to the store, except that one process of each node downloads.

    Args:
        folder: for files in the making, empty; shared by the processes of a node.
        warnings: what was found before the stage began.
        on_committed: called by rank 0 once the stage is committed, before its exports and report. If the process is
            killed while it makes them, the stage is committed all the same.
        fitting_rows: see Context.
    Raises: StageError with a sentence that a user can act on; StopRequested.
    """
    world = join_world(signals.deferred)
    with world.membership(signals.deferred):
        if not world.is_alone:
            signals.raise_if_requested()  # a signal that came while the processes connected
        address = order.storage
        store = open_store(
            address.uri,
            endpoint_url=address.endpoint_url,
            region=address.region,
            encryption=address.encryption.put_fields if address.encryption else None,
        )
        warnings = warnings or StageWarnings()
        context = Context(order, store, attempt, folder, reporter, signals, warnings, world, fitting_rows)
        if order.teacher_pass:
            return run_pass(context)
        if order.evidence is not None:
            return run_verdict(context, order.evidence)
        return _run_student(context, on_committed)


def _run_student(context: Context, on_committed: Callable[[Committed], None] | None) -> Committed:
    """The commit of a student, then its exports and the report."""
    order, is_main = context.order, context.world.is_main
    committed = _find_committed(context) if order.export_only else _adopt_or_train(context)
    if on_committed is not None and is_main and (order.export.name or order.final):
        on_committed(committed)
    answer = _with_exports(context, committed)
    if is_main:
        with context.signals.deferred():  # a committed stage is not reported as interrupted because of its report
            if order.final:
                ensure_report(context.store, order.chain, order.digest, adopted=answer.reused)
            elif order.last_digest:
                renew_report(context.store, order.chain, order.last_digest)
    return answer


def _adopt_or_train(context: Context) -> Committed:
    world = context.world
    # First of all: a stage that is committed already is adopted in seconds, by one process without torch.
    found = store_commit.read_manifest(context.store, context.order.digest) if world.is_main else None
    if not world.from_main(lambda: "committed" if found else "", "search for a commit"):
        return _train(context)

    def adopted() -> str:
        assert found is not None
        return adopt(context, found).to_json()

    return Committed.parse(world.from_main(adopted, "verification of the commit"))


def _find_committed(context: Context) -> Committed:
    """The answer of a stage that is committed and gets an export. Its files are verified when they are read."""
    found = context.world.from_main(lambda: read_committed(context).to_json(), "search for a commit")
    return answer_of(context.order, Manifest.parse(found), reused=True)


def _with_exports(context: Context, answer: Committed) -> Committed:
    """The answer with its exports, which rank 0 makes."""
    if context.order.export.name is None:
        return answer
    return Committed.parse(context.world.from_main(lambda: with_exports(context, answer).to_json(), "export"))


def _train(context: Context) -> Committed:
    with _without_collections():
        # torch and transformers take seconds to import, and a committed stage needs neither.
        import_libraries()
        check_gpus_are_seen()
        from distillchain_trainer.stage.commit import commit
        from distillchain_trainer.stage.compute import compute
        from distillchain_trainer.stage.prepare import prepare

        context.signals.raise_if_requested()
        _prove_store(context)
    with context.tracked():
        with _without_collections():
            prepared = prepare(context)
        return commit(context, prepared, compute(context, prepared))


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Within, Python does not look for garbage.

    Imports and rows create millions of objects that stay. To search them again and again takes a tenth of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _prove_store(context: Context) -> None:
    # Before anything is fetched: without the right to write, all work would be lost.
    kept_behind = None
    if context.world.is_main:
        kept_behind = store_commit.prove(context.store, context.order.digest, context.attempt)
    if kept_behind:
        context.warnings.add(kept_behind)


def adopt(context: Context, manifest: Manifest) -> Committed:
    """The answer for a stage that is committed already. Verifies its files and checks the gates of the work order."""
    # Every file is read: the next stage is taught by this checkpoint, so damage must show here.
    verify(context.store, manifest)
    check_gates(context.order, manifest.student, manifest.teacher, kept=f"its checkpoint is {manifest.checkpoint}")
    # The pod that committed may have died before it could.
    kept_behind = clear_states(context.store, manifest.digest)
    log.info("stage found committed", extra={"digest": manifest.digest, "attempt": manifest.attempt})
    clear_scratch(context.folder)
    return answer_of(context.order, manifest, reused=True, warnings=kept_behind)


def clear_scratch(folder: Path) -> None:
    """Empties the work folder."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
