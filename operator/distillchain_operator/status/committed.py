"""What a committed stage, a measured model and a progress line say in status. Pure; the command line uses it too."""

from __future__ import annotations

from collections.abc import Sequence

from distillchain_api.graph import PlannedStage
from distillchain_api.metrics import format_for_status, metric_named
from distillchain_api.resource.status import (
    ExportStatus,
    FurtherTeacherStatus,
    MeasuredMetrics,
    MeasuredStatus,
    MetricStrings,
    MissingExport,
    SelectedEpochStatus,
    StageProgress,
    StageStatus,
)
from distillchain_api.task import Task
from distillchain_api.wire.answer import Committed, Progress, fit
from distillchain_api.wire.manifest import ModelSummary
from distillchain_operator.status.evidence import evidence_result

MAX_WARNINGS = 16  # of one stage
WARNING_BYTES = 512  # 32 stages with all their warnings stay below 300 KB of the 1.5 MB that etcd takes


def decimal(value: float) -> str:
    """A share or a rate with four decimals, as text, because Kubernetes APIs avoid floats."""
    return f"{value:.4f}"


def measured_status(model: ModelSummary, task: Task) -> MeasuredStatus:
    """A measured model in the form of status."""

    def split(metrics: dict[str, float]) -> MetricStrings:
        return {name: format_for_status(value, metric_named(name, task.metrics)) for name, value in metrics.items()}

    test = model.metrics.test
    return MeasuredStatus(
        metrics=MeasuredMetrics(validation=split(model.metrics.validation), test=split(test) if test else None),
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        examples_per_second=None if model.examples_per_second is None else f"{model.examples_per_second:.1f}",
    )


def committed_entry(
    planned: PlannedStage,
    answer: Committed,
    *,
    job: str | None = None,
    attempt: int = 0,
    started_at: str | None = None,
    finished_at: str | None = None,
) -> StageStatus:
    """The entry of a stage whose trainer reported the commit."""
    task, failure = planned.work_order.task, answer.export_failure
    missing = None
    if failure is not None:
        missing = MissingExport(
            export=planned.work_order.export.name or "",
            phase="Failed",
            job=job,
            message=failure.message,
            failure_class=failure.failure_class,
        )
    verdict = evidence_result(planned, answer)
    return StageStatus(
        name=planned.name,
        phase="Committed",
        digest=planned.digest,
        job=job,
        attempt=attempt,
        checkpoint=answer.checkpoint,
        reused=answer.reused,
        pretrained=answer.pretrained,
        # The verdict makes no model; its answer repeats the chain's last student.
        model=None if verdict else measured_status(answer.student, task),
        teacher=measured_status(answer.teacher, task) if answer.teacher else None,
        further_teachers=[
            FurtherTeacherStatus(
                name=other.name,
                share=decimal(other.share),
                metric=format_for_status(other.metric, task.deciding_metric),
            )
            for other in answer.further_teachers
        ],
        selected_epoch=SelectedEpochStatus.parse(answer.selected.to_document()) if answer.selected else None,
        started_at=started_at,
        finished_at=finished_at,
        elapsed_seconds=f"{answer.elapsed_s:.1f}",
        examples_per_second=f"{answer.examples_per_second:.1f}",
        # The success must not hide it: without this message only the report would show a student at chance.
        message=_message_of(answer),
        exports=[ExportStatus.parse(export.to_document()) for export in answer.exports],
        missing_export=missing,
        warnings=bounded_warnings(answer.warnings),
        verdict=verdict,
    )


def needless_entry(stage: PlannedStage, teacher: MeasuredStatus | None) -> StageStatus:
    """The entry of a teacher's pass that is not made, because all that needs it is committed already.

    Args:
        teacher: as one of these stages measured it.
    """
    return StageStatus(
        name=stage.name, phase="Committed", digest=stage.digest, reused=True, model=teacher, teacher=teacher
    )


def _message_of(answer: Committed) -> str | None:
    if answer.evidence is not None:
        return answer.evidence.last.sentence
    return f"may not have learned the task: {answer.student.doubt}" if answer.student.doubt else None


def bounded_warnings(warnings: Sequence[str]) -> list[str]:
    """The first warnings, and how many are left out; the manifest has all of them."""
    shown = [fit(warning, WARNING_BYTES) for warning in warnings[:MAX_WARNINGS]]
    hidden = len(warnings) - len(shown)
    return [*shown, f"{hidden} more in the manifest"] if hidden else shown


def progress_status(progress: Progress) -> StageProgress:
    """A progress line in the form of status."""
    return StageProgress(
        phase=progress.phase,
        step=progress.step,
        of=progress.of,
        loss=None if progress.loss is None else decimal(progress.loss),
        examples_per_second=None if progress.examples_per_second is None else f"{progress.examples_per_second:.1f}",
        eta_seconds=None if progress.eta_s is None else round(progress.eta_s),
    )
