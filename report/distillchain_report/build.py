"""From loaded stages to the report. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distillchain_api.layout import export_prefix
from distillchain_api.metrics import ACCURACY, Metric, metric_named
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_api.resource.status import StagePhase
from distillchain_api.tasks import metrics_of
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_report.chain_models import Root, build_root, build_student
from distillchain_report.commits import gpu_hours, sources_digest
from distillchain_report.evidence_files import LoadedEvidence
from distillchain_report.load import LoadedStage
from distillchain_report.model import (
    Comparison,
    ExportReport,
    FurtherTeacherReport,
    MetricFacts,
    Outcome,
    PassRun,
    Report,
    Run,
    SectionDetails,
    StageReport,
    Totals,
)
from distillchain_report.section import Section
from distillchain_report.sections import section_of
from distillchain_report.verdict import verdict
from distillchain_report.words import short

SPLITS = ("train", "validation", "test")


def build_report(
    chain: str,
    stages: Sequence[LoadedStage],
    *,
    storage: str,
    generated_at: str,
    version: str,
    metric: Metric = ACCURACY,
    evidence: LoadedEvidence | None = None,
) -> Report:
    """The report on the stages of a chain, in order.

    Args:
        chain: namespace/name; stages that another chain trained count as reused.
        metric: of the task, for a chain without a committed stage.
        evidence: the verdict on the chain and its controls.
    """
    committed = [stage for stage in stages if stage.manifest]
    # Also if it failed: when a gate was missed, its numbers are what the reader looks for.
    last = committed[-1] if committed else None
    manifest = last.manifest if last else None
    # From the last recipe in the store, which a report without the chain's file knows as well.
    task = manifest.recipe.get("task", {}) if manifest else None
    metric, others = _metrics(task or {}, manifest) if manifest else (metric, [])
    section = section_of(task or {})
    root = build_root(stages, metric, section)
    parts = [_stage(stage, before, root, metric, chain, section) for stage, before in _with_teachers(stages)]
    details = _details(last, root, section) if last else None
    report = Report(
        chain=chain,
        generated_at=generated_at,
        distillchain=version,
        storage=storage,
        sources=sources_digest(
            [stage.manifest for stage in committed if stage.manifest],
            [stage.export for stage in stages if stage.export],
        ),
        outcome=_outcome(parts),
        doubts=_doubts(parts, details),
        # Written below, from the finished report.
        verdict="",
        metric=MetricFacts.of(metric),
        other_metrics=[MetricFacts.of(other) for other in others],
        task=task,
        rows=_rows(manifest) if manifest else {},
        chance=section.chance(metric.name, last.answers.student) if last and last.answers.student else None,
        root=root.model if root else None,
        stages=parts,
        against_root=_against_root(last, root, metric, section) if last else None,
        details=details,
        totals=_totals(parts),
        evidence=evidence.document if evidence else None,
        missing=[*_missing(stages, root), *(evidence.missing if evidence else ())],
    )
    return report.model_copy(update={"verdict": verdict(report)})


def _with_teachers(stages: Sequence[LoadedStage]) -> list[tuple[LoadedStage, LoadedStage | None]]:
    """Each stage with the one before, which teaches it. The first is taught by the root teacher: None."""
    return list(zip(stages, [None, *stages[:-1]], strict=True))


def _missing(stages: Sequence[LoadedStage], root: Root | None) -> list[str]:
    """What could not be used, and where a stage does not follow from the one before."""
    return [
        sentence
        for stage, before in _with_teachers(stages)
        for sentence in [*stage.missing, *_breaks(stage, before, root)]
    ]


def _metrics(task: Mapping[str, Any], manifest: Manifest) -> tuple[Metric, list[Metric]]:
    """The metric that a recipe names, and the others that were measured."""
    found = {name: metric_named(name, metrics_of(task)) for name in manifest.student.metrics.validation}
    name = task.get("metric")
    # The manifest of another release may lack the metric that its recipe names; any measured one is better than none.
    deciding = found.pop(name if name in found else next(iter(found)))
    return deciding, list(found.values())


def _details(last: LoadedStage, root: Root | None, section: Section[Any]) -> SectionDetails | None:
    student = last.answers.student
    if student is None:
        return None
    return section.details(student, root=_root_answers(last, root), texts=last.answers.texts)


def _root_answers(stage: LoadedStage, root: Root | None) -> Any | None:
    """The root teacher's answers, if the stage has a student that was measured on the same rows."""
    is_student = stage.manifest is not None and stage.manifest.teacher is not None
    # A comparison is paired row by row, so the same rows are necessary.
    return root.answers if root and is_student and root.rows_sha256 == stage.rows_sha256 else None


def _against_root(last: LoadedStage, root: Root | None, metric: Metric, section: Section[Any]) -> Comparison | None:
    teacher, student = _root_answers(last, root), last.answers.student
    if teacher is None or student is None:
        return None
    return section.compare(metric.name, teacher=teacher, student=student)


def _doubts(stages: Sequence[StageReport], details: SectionDetails | None) -> list[str]:
    """About the last committed student: what its trainer doubts, and what its predictions show."""
    last = next((stage for stage in reversed(stages) if stage.model), None)
    if last is None:
        return []
    doubts = [f"{last.name} may not have learned the task: {last.doubt}"] if last.doubt else []
    return doubts + [f"{last.name} {doubt}" for doubt in (details.doubts if details else [])]


def _is_own_teacher(before: LoadedStage, manifest: Manifest) -> bool:
    """Whether the stage before, as it is committed now, taught this stage."""
    # By the weights, not by the digest: a stage that was trained again has the same digest and other weights.
    teacher = manifest.teacher
    return before.manifest is not None and teacher is not None and before.manifest.student.revision == teacher.revision


def _breaks(stage: LoadedStage, before: LoadedStage | None, root: Root | None) -> list[str]:
    """Where a stage does not follow from the stage before, because that was trained again or data were replaced."""
    manifest, found = stage.manifest, []
    if manifest is None:
        return []
    if before and before.manifest and manifest.teacher and not _is_own_teacher(before, manifest):
        found.append(
            f"{stage.wanted.name}: its teacher was {before.wanted.name} with other weights "
            f"({short(manifest.teacher.revision)}) than are committed now ({short(before.manifest.student.revision)})"
        )
    # By the content of the rows: a data set can be replaced under the same URI, which is all that a digest contains.
    if root and stage.rows_sha256 != root.rows_sha256:
        found.append(f"{stage.wanted.name}: measured on other validation rows than the root teacher; not compared")
    return found


def _stage(
    stage: LoadedStage,
    before: LoadedStage | None,
    root: Root | None,
    metric: Metric,
    chain: str,
    section: Section[Any],
) -> StageReport:
    manifest, wanted = stage.manifest, stage.wanted
    phase, message = _phase(stage)
    report = StageReport(
        name=wanted.name,
        digest=wanted.digest,
        teacher_name=before.wanted.name if before else TEACHER_STAGE,
        phase=phase,
        message=message,
        # Status also gives a class to a stage that is stuck but has not failed.
        failure_class=wanted.failure_class if phase == "Failed" else None,
    )
    if manifest is None:
        return report
    taught = manifest.teacher
    return report.model_copy(
        update={
            "warnings": manifest.warnings,
            "doubt": manifest.student.doubt,
            # A first stage without a teacher fine-tunes the root teacher: the two are one model.
            "model": root.model if root and taught is None else build_student(stage, root, metric, section),
            "run": _run(stage, manifest, metric, reused=_is_reused(stage, chain)),
            "against_teacher": _against_teacher(stage, before, metric, section),
            "teacher_metric": taught.metrics.validation.get(metric.name) if taught else None,
            "history": stage.history,
            "exports": _exports(stage, metric),
        }
    )


def _exports(stage: LoadedStage, metric: Metric) -> list[ExportReport]:
    record = stage.export
    if record is None:
        return []
    # Where the checkpoint is now shows where the store is now.
    store = stage.checkpoint.partition("/stages/")[0]
    folder = f"{store}/{export_prefix(record.digest, record.attempt)}"
    return [
        ExportReport(
            format=found.format,
            size_bytes=found.size_bytes,
            metric=found.validation[metric.name],
            examples_per_second=found.examples_per_second,
            different_predictions=found.different_predictions,
            largest_difference=found.largest_difference,
            rows=record.rows,
            uri=f"{folder}/{found.path}" if found.path else stage.checkpoint,
        )
        for found in record.formats
        # The chain may name another metric than the one that was measured then.
        if metric.name in found.validation
    ]


def _against_teacher(
    stage: LoadedStage, before: LoadedStage | None, metric: Metric, section: Section[Any]
) -> Comparison | None:
    student, teacher = stage.answers.student, stage.answers.teacher
    if stage.manifest is None or stage.manifest.teacher is None or student is None:
        return None
    if teacher is None and before and _is_own_teacher(before, stage.manifest):
        # The teacher's predictions are missing here; its own stage has them, perhaps on other rows.
        teacher = before.answers.student if before.rows_sha256 == stage.rows_sha256 else None
    return section.compare(metric.name, teacher=teacher, student=student) if teacher is not None else None


def _phase(stage: LoadedStage) -> tuple[StagePhase, str | None]:
    """The phase of a stage and what there is to say about it, from its status and from the store."""
    wanted = stage.wanted
    if stage.manifest is not None:
        # Status knows of a tightened gate or a damaged checkpoint, which the manifest does not show.
        return ("Failed", wanted.message) if wanted.phase == "Failed" else ("Committed", None)
    if wanted.phase == "Committed":
        return "Failed", stage.unreadable or "its commit is no longer in the store"
    # Status says why the stage is not done; the store shows only how far the training came.
    if wanted.message is not None:
        message = wanted.message
    elif stage.saved:
        message = f"a state at step {stage.saved[0]} of {stage.saved[1]} is saved"
    else:
        message = stage.unreadable or "not started, or nothing saved yet"
    return wanted.phase or "Pending", message


def _outcome(stages: Sequence[StageReport]) -> Outcome:
    if any(stage.phase == "Failed" for stage in stages):
        return "Failed"
    return "Succeeded" if all(stage.phase == "Committed" for stage in stages) else "Unfinished"


def _is_reused(stage: LoadedStage, chain: str) -> bool:
    # Status knows more: the store cannot tell whether an earlier run of this chain trained the stage.
    if stage.wanted.reused is not None:
        return stage.wanted.reused
    return stage.manifest is not None and stage.manifest.chain != chain


def _run(stage: LoadedStage, manifest: Manifest, metric: Metric, *, reused: bool) -> Run:
    run = manifest.run
    return Run(
        chain=manifest.chain,
        attempt=manifest.attempt,
        committed_at=manifest.committed_at,
        reused=reused,
        resumed=run.resumed,
        logits_reused=run.logits_reused,
        elapsed_s=run.elapsed_s,
        model_s=run.model_s,
        gpu_hours=gpu_hours(manifest),
        teacher_pass=_pass_run(stage.teacher_pass) if stage.teacher_pass else None,
        steps=run.steps,
        final_loss=run.final_loss,
        examples_per_second=run.examples_per_second,
        start=manifest.start,
        pretrained=manifest.pretrained,
        weights=manifest.student.revision,
        teacher=manifest.teacher.source if manifest.teacher else None,
        teacher_revision=manifest.teacher.revision if manifest.teacher else None,
        further_teachers=[
            FurtherTeacherReport(
                name=other.name, share=other.share, metric=other.facts.metrics.validation.get(metric.name)
            )
            for other in manifest.further_teachers
        ],
        data_revision=manifest.data_revision,
        recipe=manifest.recipe,
        trained_parameters=run.trained_parameters,
        selected=run.selected,
        environment=manifest.environment,
        checkpoint=stage.checkpoint,
    )


def _pass_run(manifest: PassManifest) -> PassRun:
    return PassRun(
        elapsed_s=manifest.elapsed_s,
        gpu_hours=gpu_hours(manifest),
        examples_per_second=manifest.examples_per_second,
    )


def _rows(manifest: Manifest) -> dict[str, int]:
    return {name: manifest.data[name].rows for name in (*SPLITS, "transfer") if name in manifest.data}


def _totals(stages: Sequence[StageReport]) -> Totals:
    runs = [stage.run for stage in stages if stage.run]
    passes = [run.teacher_pass for run in runs if run.teacher_pass]
    elapsed_s = sum(_elapsed_s(run) for run in runs)
    reused_s = sum(_elapsed_s(run) for run in runs if run.reused)
    pass_gpu_hours = sum(found.gpu_hours for found in passes)
    return Totals(
        stages=len(stages),
        committed=len(runs),
        reused=sum(run.reused for run in runs),
        elapsed_s=elapsed_s,
        reused_share=reused_s / elapsed_s if elapsed_s else 0.0,
        gpu_hours=sum(run.gpu_hours for run in runs) + pass_gpu_hours,
        pass_gpu_hours=pass_gpu_hours,
    )


def _elapsed_s(run: Run) -> float:
    """Wall time of a stage, with that of its teacher's pass."""
    return run.elapsed_s + (run.teacher_pass.elapsed_s if run.teacher_pass else 0.0)
