"""A teacher answers for the training rows, and is then freed: its memory is the student's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from distillchain_trainer.data.split import TaskData
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs, TeacherPass, outputs_digest
from distillchain_trainer.models.checkpoints import Checkpoint, forget
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.hidden_term import hidden_spec
from distillchain_trainer.stage.measure import numbers_check
from distillchain_trainer.stage.prepare import LoadedTeacher
from distillchain_trainer.stage.recalled import refuse_missing
from distillchain_trainer.stage.run_stats import RunStats
from distillchain_trainer.tasks.interface import TaskAdapter


def teacher_outputs(
    context: Context, task: TaskAdapter, data: TaskData, teacher: LoadedTeacher, stats: RunStats
) -> TeacherOutputs:
    """The teacher's outputs for the training rows. A teacher that its pass has asked must have answered for all."""
    on_missing = None if teacher.recalled is None else partial(refuse_missing, context, teacher.recalled)
    outputs = ask(
        context, task, data, teacher.loaded, teacher.checkpoint, stats, folder="logits", on_missing=on_missing
    )
    # After a resume, the logits are in the store because this very stage computed them, and after a pass of this chain,
    # because that did. Neither is a reuse.
    reused = outputs.reused
    if teacher.recalled is not None:
        asked = teacher.recalled.manifest
        reused = asked.has_reused_outputs or asked.chain != context.order.chain
    stats.logits_reused = reused and (stats.logits_reused or not stats.resumed)
    return outputs


def ask(
    context: Context,
    task: TaskAdapter,
    data: TaskData,
    loaded: Loaded,
    checkpoint: Checkpoint,
    stats: RunStats,
    *,
    folder: str,
    on_missing: Callable[[int, int], None] | None = None,
) -> TeacherOutputs:
    """What a teacher answers for the training rows: from the store, or computed.

    Args:
        folder: name of one for files in the making; those of other teachers are still mapped.
        on_missing: see TeacherPass.
    Raises: StopRequested once what is computed is stored.
    """
    order, rows = context.order, data.taught
    digest = outputs_digest(checkpoint.digest, order.task, order.training, reads_with=loaded.reads_with)
    # Deferred, because the pass itself asks for stops: it stores what is computed before it raises.
    with context.signals.deferred(), context.patiently():
        outputs = TeacherPass(
            store=context.store,
            digest=digest,
            model=loaded.model,
            outputs_of=task.outputs_of,
            encoded=task.encode(rows, loaded, check=context.signals.raise_if_requested),
            # By text and not by position: rows that are moved, added or left out find what was computed.
            keys=rows.keys,
            training=order.training,
            columns=loaded.columns,
            check=numbers_check(rows, checkpoint),
            folder=context.scratch(folder),
            save_interval_s=order.save_interval_s,
            stop=lambda: context.signals.requested,
            on_batch=context.batch_reporter("TeacherLogits"),
            world=context.world,
            on_missing=on_missing,
        ).run()
    context.signals.raise_if_requested()
    stats.model_s += outputs.elapsed_s
    stats.logits = [*(stats.logits or []), digest]
    return outputs


def free_teacher(context: Context, teacher: LoadedTeacher | None, *, unless_needed: bool = False) -> None:
    """The teacher is no longer needed; its memory and disk are the student's.

    Args:
        unless_needed: keep a teacher that runs beside the student.
    """
    if teacher is not None and not (unless_needed and hidden_spec(context) is not None):
        # Not `del`: `prepared` still refers to the model.
        teacher.loaded.free()
        if context.world.leads_node:
            forget(context.folder / "teacher")
