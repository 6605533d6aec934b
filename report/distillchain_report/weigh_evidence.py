"""The verdict on a chain and its controls, from their committed students in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from distillchain_api.failures import FailureClass, StageError
from distillchain_api.layout import manifest_key
from distillchain_api.metrics import Metric, default_smallest_gain
from distillchain_api.resource.evidence import Control
from distillchain_api.wire.evidence import (
    ComparedStage,
    ControlEvidence,
    EvidenceDocument,
    EvidenceOrder,
    StageEvidence,
)
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.work_order import WorkOrder
from distillchain_report.commits import gpu_hours
from distillchain_report.comparable import OTHER_ROWS, root_revision, why_not_comparable
from distillchain_report.evidence.paired import Difference, SeedRuns, difference, mean_interval
from distillchain_report.evidence.verdict import judge
from distillchain_report.load import ListableStore, LoadedStage, WantedStage, load_stages
from distillchain_report.section import Section
from distillchain_report.sections import section_of
from distillchain_report.seed_runs import have_same_rows, row_unit, seed_runs
from distillchain_store.errors import AGAIN, CheckpointCorrupt


class NothingToCompare(StageError):
    """The last compared stage has no control to compare it with. Another attempt would find the same."""

    failure_class = FailureClass.DATA_INVALID


RETRY = f"{AGAIN}, and it is trained again if its manifest is gone"
APPLY_AGAIN = "delete the chain and apply it again, and the stage is trained again"
"""For a stage of the chain: it stays committed in status whatever the verdict finds (decide/commits.py)."""


def weigh(store: ListableStore, order: WorkOrder, *, made_at: str) -> EvidenceDocument:
    """Compares the students that a work order names.

    Raises: CheckpointCorrupt if one is not committed; NothingToCompare with all reasons; errors of the store.
    """
    asked = order.evidence
    assert asked is not None, "only the order of a verdict is weighed"
    section = section_of(order.task.to_document())
    stages: list[StageEvidence] = []
    missing = _left_out(asked)
    for compared in asked.stages:
        found = _weigh_stage(store, compared, asked, order.task.deciding_metric, section, missing)
        stages += [found] if found else []
    # The verdict is on the chain, so that of an earlier stage must not take its place.
    if not stages or stages[-1].stage != asked.stages[-1].stage:
        others = [f"{found.stage} is {found.outcome}: {found.sentence}" for found in stages]
        raise NothingToCompare(f"{asked.stages[-1].stage} cannot be compared: {'; '.join([*missing, *others])}")
    return EvidenceDocument(
        digest=order.digest,
        chain=order.chain,
        metric=order.task.metric,
        stages=stages,
        missing=missing,
        students=[student for stage in asked.stages for student in stage.students],
        made_at=made_at,
    )


def _left_out(asked: EvidenceOrder) -> list[str]:
    return [f"{', '.join(asked.missing)} failed"] if asked.missing else []


def _weigh_stage(
    store: ListableStore,
    compared: ComparedStage,
    asked: EvidenceOrder,
    metric: Metric,
    section: Section[Any],
    missing: list[str],
) -> StageEvidence | None:
    """A stage beside its controls; None with a sentence in `missing` if it cannot be compared.

    Args:
        missing: gets a sentence for each control that is left out.
    """
    if not compared.judged_controls:
        missing.append(f"{compared.stage}: not compared, because two seeds of the stage and of a control are needed")
        return None
    own = _load(store, compared, None)
    own_runs = _runs(own, own, metric, section)
    if own_runs is None:
        missing.append(f"{compared.stage}: {_why_not(own)}")
        return None
    if reason := why_not_comparable(own, own[0], root=None):
        missing.append(f"{compared.stage}: {reason}")
        return None
    arms: dict[Control, tuple[list[LoadedStage], SeedRuns]] = {}
    for control in compared.judged_controls:
        students = _load(store, compared, control)
        runs = _runs(students, own, metric, section)
        root = root_revision(store, own[0].wanted.digest) if control == "FromRoot" else None
        if runs is None:
            missing.append(f"{control} of {compared.stage}: {_why_not(students)}")
        elif reason := why_not_comparable(students, own[0], root=root):
            missing.append(f"{control} of {compared.stage}: {reason}")
        else:
            arms[control] = (students, runs)
    if not arms:
        return None
    return _judged(compared.stage, own, own_runs, arms, metric, asked)


def _judged(
    stage: str,
    own: Sequence[LoadedStage],
    own_runs: SeedRuns,
    arms: dict[Control, tuple[list[LoadedStage], SeedRuns]],
    metric: Metric,
    asked: EvidenceOrder,
) -> StageEvidence:
    unit = row_unit(metric)
    differences = {
        control: difference(own_runs, runs, comparisons=len(arms), row_unit=unit) for control, (_, runs) in arms.items()
    }
    mean = float(own_runs.values.mean())
    low, high = _interval(own_runs, metric)
    smallest_gain = asked.smallest_gain or default_smallest_gain(metric, mean)
    judgement = judge({str(name): found for name, found in differences.items()}, metric, smallest_gain=smallest_gain)
    return StageEvidence(
        stage=stage,
        metric=mean,
        seeds=min(own_runs.seeds, *(runs.seeds for _, runs in arms.values())),
        rows=own_runs.rows,
        smallest_gain=smallest_gain,
        outcome=judgement.outcome,
        control=next(control for control in arms if control == judgement.control),
        sentence=judgement.sentence,
        seeds_to_decide=judgement.seeds,
        rows_to_decide=judgement.rows,
        names=[student.wanted.name for student in own],
        values=own_runs.values.tolist(),
        metric_low=low,
        metric_high=high,
        gpu_hours=_mean_gpu_hours(own),
        steps=_steps(own),
        controls=[
            _control(control, students, runs, differences[control], metric)
            for control, (students, runs) in arms.items()
        ],
    )


def _interval(runs: SeedRuns, metric: Metric) -> tuple[float, float]:
    """The interval of a recipe's mean metric, without values that the metric cannot have."""
    low, high = mean_interval(runs, row_unit=row_unit(metric))
    lowest, highest = metric.range
    return max(low, lowest), min(high, highest)


def _control(
    control: Control, students: Sequence[LoadedStage], runs: SeedRuns, found: Difference, metric: Metric
) -> ControlEvidence:
    low, high = metric.possible_differences(found.low, found.high)
    metric_low, metric_high = _interval(runs, metric)
    return ControlEvidence(
        control=control,
        metric=float(runs.values.mean()),
        difference=found.value,
        low=low,
        high=high,
        p_value=found.p_value,
        detectable=found.detectable,
        names=[student.wanted.name for student in students],
        values=runs.values.tolist(),
        metric_low=metric_low,
        metric_high=metric_high,
        gpu_hours=_mean_gpu_hours(students),
        steps=_steps(students),
    )


def _load(store: ListableStore, compared: ComparedStage, control: Control | None) -> list[LoadedStage]:
    """Raises: CheckpointCorrupt for one that is not committed, or whose manifest cannot be read."""
    found = load_stages(store, [WantedStage(each.name, each.digest) for each in compared.students_of(control)])
    # The operator no longer trusts the status of the vertex that the message begins with (decide/commits.py).
    for student in found:
        if student.unreadable is not None:
            raise CheckpointCorrupt(f"{student.wanted.name}: {student.unreadable}")
        if student.manifest is None:
            where = f"{store.uri}/{manifest_key(student.wanted.digest)}"
            remedy = APPLY_AGAIN if student.wanted.name == compared.stage else RETRY
            raise CheckpointCorrupt(f"{student.wanted.name}: {where} is missing; {remedy}")
    return found


def _runs(
    students: Sequence[LoadedStage], own: Sequence[LoadedStage], metric: Metric, section: Section[Any]
) -> SeedRuns | None:
    """The students in numbers; None if their predictions cannot be read, or are of other rows than those of `own`."""
    if not have_same_rows([*own, *students], section):
        return None
    return seed_runs(students, metric.name, section)


def _why_not(students: Sequence[LoadedStage]) -> str:
    lost = [student.wanted.name for student in students if student.answers.student is None]
    if lost:
        return f"not compared, because predictions are missing or altered: {', '.join(lost)}"
    return f"not compared, because its students were measured on different validation rows; {OTHER_ROWS}"


def _mean_gpu_hours(students: Sequence[LoadedStage]) -> float:
    hours = [gpu_hours(manifest) for manifest in _manifests(students)]
    return sum(hours) / len(hours)


def _steps(students: Sequence[LoadedStage]) -> int:
    return next(manifest.run.steps for manifest in _manifests(students))


def _manifests(students: Sequence[LoadedStage]) -> Iterator[Manifest]:
    return (student.manifest for student in students if student.manifest is not None)
