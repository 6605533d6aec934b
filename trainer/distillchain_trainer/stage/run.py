"""One stage from work order to answer, in the order of design section 6."""

from __future__ import annotations

import datetime
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from distillchain_api.wire.answer import Committed, Measured
from distillchain_api.wire.manifest import Manifest, ModelFacts
from distillchain_api.wire.work_order import WorkOrder
from distillchain_store import commit
from distillchain_store.store import Store, open_store
from distillchain_trainer.engine.saved_state import clear_states
from distillchain_trainer.launch.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage.report import ensure_report
from distillchain_trainer.tasks.text_classification import chance as gates

log = logging.getLogger(__name__)


@dataclass
class Context:
    """What every step of one stage needs.

    Attributes:
        folder: for files in the making; empty at the start.
    """

    order: WorkOrder
    store: Store
    attempt: str
    folder: Path
    reporter: Reporter
    signals: Signals
    started_at: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
    started_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds of this attempt so far."""
        return time.monotonic() - self.started_s


def run_stage(order: WorkOrder, *, attempt: str, folder: Path, reporter: Reporter, signals: Signals) -> Committed:
    """Carries out a work order, or adopts what is committed already.

    Raises: StageError with a sentence a person can act on; StopRequested.
    """
    address = order.storage
    store = open_store(address.uri, endpoint_url=address.endpoint_url, region=address.region)
    context = Context(order, store, attempt, folder, reporter, signals)
    found = commit.read_manifest(store, order.digest)
    answer = adopt(context, found) if found is not None else _train(context)
    if order.final:
        with signals.deferred():  # what is committed is not called interrupted for its report's sake
            ensure_report(store, order, adopted=answer.reused)
    return answer


def _train(context: Context) -> Committed:
    from distillchain_trainer.stage.stage_ import train_stage  # torch and transformers take seconds to import

    context.signals.raise_if_requested()
    commit.prove(context.store, context.order.digest, context.attempt)
    return train_stage(context)


def adopt(context: Context, manifest: Manifest) -> Committed:
    """The answer for a stage that is committed already: verified, and its gate held as it stands now."""
    commit.verify(context.store, manifest)
    check_gate(context.order, manifest.student, manifest.teacher, kept=f"its checkpoint is {manifest.checkpoint}")
    clear_states(context.store, manifest.digest)  # the pod that committed may have died before it could
    log.info("stage found committed", extra={"digest": manifest.digest, "attempt": manifest.attempt})
    clear_scratch(context.folder)
    return answer_of(context.order, manifest, reused=True)


def check_gate(order: WorkOrder, student: ModelFacts, teacher: ModelFacts | None, *, kept: str) -> None:
    """The gates on the root teacher and the stage's student, as they stand now. Raises: GateNotMet."""
    metric = order.task.metric
    if order.teacher is not None and teacher is not None:
        gates.check_teacher_gate(order.teacher, teacher.source, teacher.metrics.validation[metric], metric=metric)
    gates.check_student(
        order.stage,
        order.field,
        student.metrics.validation[metric],
        metric=metric,
        gate=order.gate,
        teacher=teacher.metrics.validation[metric] if teacher else None,
        kept=kept,
    )


def answer_of(order: WorkOrder, manifest: Manifest, *, reused: bool) -> Committed:
    """What the operator and a person learn of a commit."""
    return Committed(
        stage=order.stage,
        digest=manifest.digest,
        attempt=manifest.attempt,
        checkpoint=manifest.checkpoint,
        reused=reused,
        pretrained=manifest.pretrained,
        student=_measured(manifest.student),
        teacher=_measured(manifest.teacher) if manifest.teacher else None,
        elapsed_s=manifest.run.elapsed_s,
        examples_per_second=manifest.run.examples_per_second,
    )


def _measured(facts: ModelFacts) -> Measured:
    return Measured(
        metrics=facts.metrics,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        examples_per_second=facts.examples_per_second,
        doubt=facts.doubt,
    )


def clear_scratch(folder: Path) -> None:
    """Empties the work folder."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
