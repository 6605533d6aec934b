"""From what was loaded to the report: pure, the time comes in as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distillchain_api.resource.spec import TEACHER_STAGE
from distillchain_api.wire.manifest import Manifest, ModelFacts
from distillchain_report import statistics
from distillchain_report.load import LoadedStage, Predictions, manifests_digest
from distillchain_report.model import (
    ClassReport,
    Difference,
    Estimate,
    ModelReport,
    Outcome,
    Pairing,
    Report,
    Run,
    StageReport,
    StandingOf,
    Totals,
)
from distillchain_report.words import short, verdict

METRICS: tuple[str, ...] = ("accuracy", "macroF1")
SPLITS = ("train", "validation", "test")


def build_report(
    chain: str,
    stages: Sequence[LoadedStage],
    *,
    storage: str,
    generated_at: str,
    version: str,
    metric: str = "accuracy",
) -> Report:
    """The report on a chain's stages, in order.

    Args:
        chain: namespace/name; stages that another chain trained count as re-used.
        metric: of the task, for a chain of which nothing is committed yet.
    """
    committed = [stage for stage in stages if stage.manifest]
    task = committed[-1].manifest.recipe.get("task") if committed and committed[-1].manifest else None
    metric = task.get("metric", metric) if task else metric
    root = _root(stages, metric)
    teachers = [None, *stages[:-1]]
    parts = [_stage(stage, before, root, metric, chain) for stage, before in zip(stages, teachers, strict=True)]
    root_predictions = root.predictions if root else None
    last = committed[-1] if committed else None
    compared = last.student if last and _is_student(last) else None
    if not _same_rows(compared, root_predictions):
        compared = None
    labels = task.get("labels", []) if task else []
    student = last.student if last else None
    report = Report(
        chain=chain,
        generated_at=generated_at,
        distillchain=version,
        storage=storage,
        manifests=manifests_digest([stage.manifest for stage in stages if stage.manifest]),
        outcome=_outcome(parts),
        verdict="",
        metric=metric,
        task=task,
        rows=_rows(last.manifest) if last and last.manifest else {},
        most_frequent=_most_frequent(metric, student) if student else None,
        root=root.model if root else None,
        stages=parts,
        against_root=_pairing(root_predictions, compared),
        labels=labels,
        confusion=statistics.confusion(student.truth, student.predicted, len(labels)).tolist() if student else None,
        classes=_classes(student, labels) if student else [],
        differences=_differences(root_predictions, compared, labels, last.texts) if last else [],
        totals=_totals(parts),
        missing=[
            sentence
            for stage, before in zip(stages, teachers, strict=True)
            for sentence in [*stage.missing, *_breaks(stage, before, root)]
        ],
    )
    return report.model_copy(update={"verdict": verdict(report)})


def _is_student(stage: LoadedStage) -> bool:
    return stage.manifest is not None and stage.manifest.teacher is not None


@dataclass(frozen=True)
class _Root:
    """The root teacher, and the sha256 of the validation rows that it was measured on."""

    model: ModelReport
    predictions: Predictions | None
    rows_sha256: str


def _root(stages: Sequence[LoadedStage], metric: str) -> _Root | None:
    """The teacher that stands at the top, as the first stage measured it; or stage zero's result."""
    first = stages[0]
    if first.manifest is None:
        return None
    facts, predictions, on_test = first.manifest.teacher, first.teacher, None
    if facts is None:
        facts, predictions, on_test = first.manifest.student, first.student, first.on_test
    model = _model(TEACHER_STAGE, facts, predictions, on_test, first.manifest, metric, pretrained=None)
    return _Root(model, predictions, first.manifest.data["validation"].sha256)


def _has_taught(before: LoadedStage, manifest: Manifest) -> bool:
    """The stage before, as it is committed now, is the one that taught this stage."""
    taught_by = manifest.teacher
    return (
        before.manifest is not None and taught_by is not None and before.manifest.student.revision == taught_by.revision
    )


def _breaks(stage: LoadedStage, before: LoadedStage | None, root: _Root | None) -> list[str]:
    """Where a stage does not follow from what is committed before it: that was trained anew, or data was replaced."""
    manifest, found = stage.manifest, []
    if manifest is None:
        return []
    if before and before.manifest and manifest.teacher and not _has_taught(before, manifest):
        found.append(
            f"{stage.wanted.name}: other weights of {before.wanted.name} have taught it "
            f"({short(manifest.teacher.revision)}) than are committed now ({short(before.manifest.student.revision)})"
        )
    if root and manifest.data["validation"].sha256 != root.rows_sha256:
        found.append(
            f"{stage.wanted.name}: it was measured on other validation rows than the root teacher; not compared"
        )
    return found


def _stage(
    stage: LoadedStage,
    before: LoadedStage | None,
    root: _Root | None,
    metric: str,
    chain: str,
) -> StageReport:
    manifest, wanted = stage.manifest, stage.wanted
    standing, message = _standing(stage)
    report = StageReport(
        name=wanted.name,
        digest=wanted.digest,
        teacher_name=before.wanted.name if before else TEACHER_STAGE,
        standing=standing,
        message=message,
        failure_class=wanted.failure_class if standing == "Failed" else None,
    )
    if manifest is None:
        return report
    teacher = stage.teacher
    if teacher is None and before and _has_taught(before, manifest):
        teacher = before.student
    model = root.model if root and manifest.teacher is None else None
    if model is None:
        model = _model(
            wanted.name,
            manifest.student,
            stage.student,
            stage.on_test,
            manifest,
            metric,
            pretrained=manifest.pretrained,
        )
        model = model.model_copy(update=_against_root(model, stage.student, manifest, root, metric))
    return report.model_copy(
        update={
            "model": model,
            "run": _run(manifest, stage.checkpoint, reused=_is_reused(stage, chain)),
            "against_teacher": _pairing(teacher, stage.student) if manifest.teacher else None,
            "teacher_metric": manifest.teacher.metrics.validation[metric] if manifest.teacher else None,
            "history": stage.history,
        }
    )


def _standing(stage: LoadedStage) -> tuple[StandingOf, str | None]:
    """The store decides what is committed; of the rest, and of a commit that may not be used, others have told."""
    wanted = stage.wanted
    if stage.manifest is not None:
        return ("Failed", wanted.message) if wanted.phase == "Failed" else ("Committed", None)
    unreadable = stage.missing[0].removeprefix(f"{wanted.name}: ") if stage.missing else None
    if wanted.phase == "Committed":
        return "Failed", unreadable or "its commit is not in the store any more"
    message = wanted.message
    if message is None:
        message = unreadable or "not begun, or nothing saved yet"
        if stage.saved:
            message = f"a state at step {stage.saved[0]} of {stage.saved[1]} is saved"
    return wanted.phase or "Pending", message


def _outcome(stages: Sequence[StageReport]) -> Outcome:
    if any(stage.standing == "Failed" for stage in stages):
        return "Failed"
    return "Succeeded" if all(stage.standing == "Committed" for stage in stages) else "Unfinished"


def _model(
    name: str,
    facts: ModelFacts,
    predictions: Predictions | None,
    on_test: Predictions | None,
    manifest: Manifest,
    metric: str,
    *,
    pretrained: bool | None,
) -> ModelReport:
    rows = _rows(manifest)
    values = {
        each: _estimate(each, facts.metrics.validation[each], predictions, rows["validation"]) for each in METRICS
    }
    test = facts.metrics.test
    return ModelReport(
        name=name,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        metric=values[metric],
        accuracy=values["accuracy"],
        macro_f1=values["macroF1"],
        test=_estimate(metric, test[metric], on_test, rows.get("test", 0)) if test else None,
        compression=1.0,
        examples_per_second=facts.examples_per_second,
        pretrained=pretrained,
    )


def _estimate(metric: str, value: float, predictions: Predictions | None, rows: int) -> Estimate:
    """With its interval: accuracy needs only the number of rows for that, macro F1 the predictions."""
    if metric == "accuracy" and rows:
        low, high = statistics.share_interval(round(value * rows), rows)
    elif predictions is not None:
        low, high = statistics.metric_interval(metric, predictions.truth, predictions.predicted)
    else:
        return Estimate(value=value)
    return Estimate(value=value, low=low, high=high)


def _against_root(
    model: ModelReport,
    predictions: Predictions | None,
    manifest: Manifest,
    root: _Root | None,
    metric: str,
) -> dict[str, object]:
    """What a student is beside the root teacher; what it keeps only where both were measured on the same rows."""
    if root is None:
        return {}
    compression = root.model.parameters / model.parameters
    if manifest.data["validation"].sha256 != root.rows_sha256 or not root.model.metric.value:
        return {"compression": compression}
    value = model.metric.value / root.model.metric.value
    retention = Estimate(value=value)
    if predictions and root.predictions and _same_rows(predictions, root.predictions):
        low, high = statistics.retention_interval(
            metric, predictions.truth, root.predictions.predicted, predictions.predicted
        )
        retention = Estimate(value=value, low=low, high=high)
    return {"retention": retention, "compression": compression}


def _same_rows(one: Predictions | None, other: Predictions | None) -> bool:
    if one is None or other is None:
        return False
    return one.rows_sha256 == other.rows_sha256 and np.array_equal(one.truth, other.truth)


def _pairing(teacher: Predictions | None, student: Predictions | None) -> Pairing | None:
    if teacher is None or student is None or not _same_rows(teacher, student):
        return None
    found = statistics.paired(student.truth, teacher.predicted, student.predicted)
    return Pairing(
        both_right=found.both_right,
        only_teacher_right=found.only_teacher_right,
        only_student_right=found.only_student_right,
        both_wrong=found.both_wrong,
        p_value=found.p_value,
    )


def _is_reused(stage: LoadedStage, chain: str) -> bool:
    if stage.wanted.reused is not None:
        return stage.wanted.reused
    return stage.manifest is not None and stage.manifest.chain != chain


def _run(manifest: Manifest, checkpoint: str, *, reused: bool) -> Run:
    run, environment = manifest.run, manifest.environment
    on_gpu = not environment.get("device", "cpu").startswith("cpu")
    return Run(
        chain=manifest.chain,
        attempt=manifest.attempt,
        committed_at=manifest.committed_at,
        reused=reused,
        resumed=run.resumed,
        logits_reused=run.logits_reused,
        elapsed_s=run.elapsed_s,
        model_s=run.model_s,
        gpu_hours=run.elapsed_s / 3600 if on_gpu else 0.0,
        steps=run.steps,
        final_loss=run.final_loss,
        examples_per_second=run.examples_per_second,
        start=manifest.start,
        pretrained=manifest.pretrained,
        weights=manifest.student.revision,
        teacher=manifest.teacher.source if manifest.teacher else None,
        teacher_revision=manifest.teacher.revision if manifest.teacher else None,
        data_revision=manifest.data_revision,
        recipe=manifest.recipe,
        environment=environment,
        checkpoint=checkpoint,
    )


def _rows(manifest: Manifest) -> dict[str, int]:
    return {name: manifest.data[name].rows for name in SPLITS if name in manifest.data}


def _most_frequent(metric: str, predictions: Predictions) -> Estimate:
    """What a model that knows nothing but the most frequent class would reach."""
    truth = predictions.truth
    guess = np.full_like(truth, np.bincount(truth).argmax())
    value = float((truth == guess).mean()) if metric == "accuracy" else statistics.macro_f1(truth, guess)
    return Estimate(value=value)


def _classes(predictions: Predictions, labels: Sequence[str]) -> list[ClassReport]:
    table = statistics.confusion(predictions.truth, predictions.predicted, len(labels))
    f1_ends = statistics.f1_intervals(predictions.truth, predictions.predicted, len(labels))
    found = []
    for index, (label, (low, high)) in enumerate(zip(labels, f1_ends, strict=True)):
        hits, rows, guessed = int(table[index, index]), int(table[index].sum()), int(table[:, index].sum())
        found.append(
            ClassReport(
                label=label,
                rows=rows,
                recall=_share(hits, rows),
                precision=_share(hits, guessed),
                f1=Estimate(value=2 * hits / (rows + guessed) if rows + guessed else 0.0, low=low, high=high),
            )
        )
    return found


def _share(hits: int, rows: int) -> Estimate | None:
    """None: of nothing."""
    if not rows:
        return None
    low, high = statistics.share_interval(hits, rows)
    return Estimate(value=hits / rows, low=low, high=high)


def _differences(
    teacher: Predictions | None, student: Predictions | None, labels: Sequence[str], texts: dict[int, list[str]]
) -> list[Difference]:
    if teacher is None or student is None:
        return []
    theirs, ours = statistics.softmax(teacher.logits), statistics.softmax(student.logits)
    apart = statistics.differences(theirs, ours)
    return [
        Difference(
            row=row,
            text=texts.get(row),
            label=labels[student.truth[row]],
            teacher=labels[teacher.predicted[row]],
            teacher_probability=float(theirs[row].max()),
            student=labels[student.predicted[row]],
            student_probability=float(ours[row].max()),
            distance=float(apart[row]),
        )
        for row in statistics.most_different(theirs, ours)
    ]


def _totals(stages: Sequence[StageReport]) -> Totals:
    runs = [stage.run for stage in stages if stage.run]
    elapsed_s = sum(run.elapsed_s for run in runs)
    reused_s = sum(run.elapsed_s for run in runs if run.reused)
    return Totals(
        stages=len(stages),
        committed=len(runs),
        reused=sum(run.reused for run in runs),
        elapsed_s=elapsed_s,
        reused_share=reused_s / elapsed_s if elapsed_s else 0.0,
        gpu_hours=sum(run.gpu_hours for run in runs),
    )
