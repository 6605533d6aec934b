"""What a run would do, according to the store: which stages are committed, which would be trained, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from distillchain_api.failures import StageError
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.layout import evidence_key, export_record_key, resume_prefix
from distillchain_api.resource.student import Student
from distillchain_cli.errors import RunFailed
from distillchain_cli.local.gate_check import gate_problem
from distillchain_cli.local.needless_passes import commit_without_pass
from distillchain_cli.output.columns import WIDTH, Column, format_columns
from distillchain_cli.output.phrases import NOT_NEEDED
from distillchain_cli.stores import open_chain_store

if TYPE_CHECKING:
    from distillchain_api.wire.work_order import WorkOrder
    from distillchain_store.store import Store

DIGEST_CHARS = 12

Action = Literal["reuse", "compute", "skip", "train", "compare", "fail", "wait"]
"""`compute` is the pass of a teacher, `skip` one that is not needed, `compare` the verdict of chain and controls."""


@dataclass(frozen=True)
class StageForecast:
    """What a run would do with a stage, and why."""

    stage: PlannedStage
    action: Action
    reason: str
    checkpoint: str | None = None
    verdict: str | None = None
    """Where the store has the verdict of chain and controls."""

    @property
    def is_committed(self) -> bool:
        """Whether the store has what the vertex makes."""
        return self.checkpoint is not None or self.verdict is not None

    def to_document(self) -> dict[str, Any]:
        """The forecast as `-o json` prints it."""
        order = self.stage.work_order
        document = {
            "name": self.stage.name,
            "digest": self.stage.digest,
            "teacher": order.teacher.name if order.teacher else None,
            "teacherDigest": self.stage.teacher_digest,
            "furtherTeachers": [{"name": other.teacher.name, "share": other.share} for other in order.further_teachers]
            or None,
            "student": None if self.stage.is_pass or self.stage.is_verdict else student_start(order.student),
            "committed": self.is_committed,
            "checkpoint": self.checkpoint,
            "verdict": self.verdict,
            "action": self.action,
            "reason": self.reason,
        }
        return {key: value for key, value in document.items() if value is not None}


def student_start(student: Student) -> str:
    """Where a student starts: its checkpoint, `4 layers of the teacher`, or `new bert`; and `+ LoRA of rank 16`."""
    if student.from_teacher is not None:
        start = student.from_teacher.shown
    else:
        start = student.model or f"new {student.architecture.model_type if student.architecture else ''}"
    return f"{start} + {student.lora.shown}" if student.lora else start


def fetch_forecast(plan: Plan) -> list[StageForecast]:
    """What a run would do with every stage. Reads the store and changes nothing.

    Raises: RunFailed with the store's message when it cannot be read.
    """
    try:
        store = open_chain_store(plan.chain.spec.storage)
        forecasts: list[StageForecast] = []
        for stage in plan.vertices:
            forecast = _forecast(store, stage, forecasts)
            if commit_without_pass(plan, stage, store) is not None:
                forecast = replace(forecast, action="skip", reason=NOT_NEEDED)
            # The store is read for these too: their state is worth showing, even if the run stops before them.
            before = next((one for one in reversed(forecasts) if not one.stage.is_evidence), None)
            if before is not None and before.action in ("fail", "wait"):
                reason = f"not reached: {before.stage.name} would {before.action}"
                forecast = replace(forecast, action="wait", reason=reason)
            forecasts.append(forecast)
    except StageError as error:
        raise RunFailed(str(error)) from error
    return forecasts


def _forecast(store: Store, stage: PlannedStage, before: list[StageForecast]) -> StageForecast:
    from distillchain_store.commit import read_manifest
    from distillchain_store.errors import CheckpointCorrupt, OtherRelease

    if stage.is_pass:
        return _forecast_pass(store, stage)
    if stage.is_verdict:
        return _forecast_verdict(store, stage)
    try:
        manifest = read_manifest(store, stage.digest)
    except (CheckpointCorrupt, OtherRelease) as error:
        return StageForecast(stage, "fail", str(error))
    if manifest is not None:
        problem = gate_problem(stage.work_order, manifest, kept=f"it is {manifest.checkpoint}")
        if problem is not None:
            return StageForecast(stage, "fail", problem, manifest.checkpoint)
        reason = "committed in the store" + _missing_export(store, stage)
        return StageForecast(stage, "reuse", reason, manifest.checkpoint)
    reason = "not in the store"
    if store.list_objects(resume_prefix(stage.digest)):
        reason += "; training state is saved"
    elif after := [one.stage.name for one in before if one.action == "train" and one.stage.name in stage.needs]:
        reason += f"; after {after[-1]}"
    return StageForecast(stage, "train", reason)


def _forecast_pass(store: Store, stage: PlannedStage) -> StageForecast:
    from distillchain_api.gates import missed_teacher_gate, teacher_sentence
    from distillchain_store.errors import CheckpointCorrupt
    from distillchain_store.passes import read_pass

    order = stage.work_order
    try:
        manifest = read_pass(store, stage.digest)
    except CheckpointCorrupt as error:
        return StageForecast(stage, "fail", str(error))
    if manifest is None:
        return StageForecast(stage, "compute", "not in the store")
    if miss := missed_teacher_gate(order, manifest.teacher.metrics.validation.get(order.task.metric)):
        return StageForecast(stage, "fail", teacher_sentence(miss, order, uri=manifest.teacher.source))
    return StageForecast(stage, "reuse", "committed in the store", manifest.teacher.source)


def _forecast_verdict(store: Store, stage: PlannedStage) -> StageForecast:
    order = stage.work_order.evidence
    assert order is not None
    key = evidence_key(order.chain_digest, stage.digest)
    verdict = f"{store.uri}/{key}" if store.list_objects(key) else None
    return StageForecast(stage, "compare", "compares all of them; takes seconds, in every run", verdict=verdict)


def _missing_export(store: Store, stage: PlannedStage) -> str:
    name = stage.work_order.export.name
    if name is None or store.list_objects(export_record_key(stage.digest, name)):
        return ""
    return "; its export will be made"


def _teachers(order: WorkOrder) -> str:
    """`mini`, or `mini + teacher`."""
    first = [order.teacher.name] if order.teacher else []
    return " + ".join([*first, *(other.teacher.name for other in order.further_teachers)])


def plan_table(forecasts: list[StageForecast], *, width: int | None = WIDTH) -> str:
    """One line for each stage; the full reason of a failure below."""
    titles = ("DIGEST", "TEACHER", "COMMITTED", "ACTION", "REASON")
    columns = [Column("STAGE", is_name=True), *map(Column, titles)]
    rows = [
        [
            item.stage.name,
            item.stage.digest[:DIGEST_CHARS],
            _teachers(item.stage.work_order),
            "yes" if item.is_committed else "no",
            item.action,
            item.reason,
        ]
        for item in forecasts
    ]
    # The REASON column is cut to the width of the terminal, and a failure needs its whole sentence.
    failures = [f"{item.stage.name}: {item.reason}" for item in forecasts if item.action == "fail"]
    return "\n".join([format_columns(columns, rows, width=width), *failures])


def summary(plan: Plan, forecasts: list[StageForecast]) -> str:
    """What a run would do, in one sentence."""
    names = {
        action: ", ".join(item.stage.name for item in forecasts if item.action == action)
        for action in ("compute", "train", "compare", "fail")
    }
    parts = [f"compute {names['compute']}"] if names["compute"] else []
    parts.append(f"train {names['train'] or 'nothing'}")
    if names["compare"]:
        parts.append("compare the chain with its controls")
    if names["fail"]:
        parts.append(f"fail at {names['fail'].partition(',')[0]}")
    what = f"would {' and '.join(parts)}"
    return f"{plan.chain.name} in {plan.chain.spec.storage.uri}: a run {what}; this command changed nothing"
