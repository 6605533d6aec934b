"""The status of a chain, built from the plan and the entries of its stages. Pure; the command line uses it too.

Conditions follow kstatus: Reconciling while work is in progress, Stalled when the user must act, Ready when it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from distillchain_api.metrics import retention
from distillchain_api.resource.status import (
    ChainPhase,
    ChainResult,
    ChainStatus,
    Condition,
    ConditionType,
    MeasuredStatus,
    StageStatus,
)
from distillchain_api.retry_request import annotated_retry
from distillchain_api.wire.answer import fit
from distillchain_operator.status.committed import decimal
from distillchain_operator.status.evidence import Truth, evidence_ready, passes_of_controls

INVALID_SPEC = "InvalidSpec"
MESSAGE_BYTES = 2048  # a condition may hold 32 KiB, which is too much to read in `kubectl get`


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def metric_of(model: MeasuredStatus | None, metric: str, *, split: Literal["validation", "test"] = "validation") -> str:
    """A metric of a measured model; empty if there is none."""
    metrics = None if model is None else model.metrics.validation if split == "validation" else model.metrics.test
    return (metrics or {}).get(metric, "")


def root_teacher(plan: Plan, stages: Sequence[StageStatus]) -> MeasuredStatus | None:
    """The root teacher: the model of stage zero if the chain fine-tunes it, else what the first stage measured."""
    skipped = passes_of_controls(plan, stages)
    first = next(planned for planned in plan.stages if planned.name not in skipped)
    entry = next((entry for entry in stages if entry.name == first.name), None)
    if entry is None:
        return None
    # An order without a teacher is stage zero, whose own model becomes the root teacher.
    return entry.model if first.work_order.teacher is None else entry.teacher


def chain_result(plan: Plan, stages: Sequence[StageStatus]) -> ChainResult | None:
    """The result of the chain; None until every stage is committed."""
    by_name = {entry.name: entry for entry in stages}
    skipped = passes_of_controls(plan, stages)
    entries = [by_name.get(planned.name) for planned in plan.stages if planned.name not in skipped]
    if any(entry is None or entry.phase != "Committed" for entry in entries):
        return None
    last, root = entries[-1], root_teacher(plan, stages)
    # A status that another release wrote may lack them.
    if last is None or last.model is None or last.checkpoint is None or root is None:
        return None
    metric = plan.chain.spec.task.deciding_metric
    student, teacher = metric_of(last.model, metric.name), metric_of(root, metric.name)
    kept = retention(float(student), float(teacher), metric)
    return ChainResult(
        checkpoint=last.checkpoint,
        metric=student,
        test_metric=metric_of(last.model, metric.name, split="test") or None,
        parameters=last.model.parameters,
        retention=None if kept is None else decimal(kept),
        compression=f"{root.parameters / last.model.parameters:.1f}",
        evidence=next((entry.verdict for entry in stages if entry.verdict), None),
    )


class _Facts(NamedTuple):
    """What all conditions have in common."""

    phase: ChainPhase
    reason: str
    message: str


def build_chain_status(
    plan: Plan, entries: Sequence[StageStatus], *, previous: ChainStatus, now: datetime, pods_run: bool = False
) -> ChainStatus:
    """The status of a chain with these entries.

    Args:
        entries: one for each vertex of the plan, in order.
        previous: has the times of conditions that do not change.
        pods_run: a pod of the chain still runs, so a suspended chain is still stopping.
    """
    chain = plan.chain
    metric = chain.spec.task.metric
    # What is beside the chain decides neither its phase nor its progress.
    beside = {vertex.name for vertex in plan.evidence}
    stages = [entry for entry in entries if entry.name not in beside]
    skipped = passes_of_controls(plan, stages)
    own = [entry for entry in stages if entry.name not in skipped]
    evidence = [entry for entry in entries if entry.name in beside | skipped]
    committed = [entry for entry in stages if entry.phase == "Committed"]
    # A pass has measured the teacher, whose metric is not that of a student.
    students = {stage.name for stage in plan.students}
    models = [entry.model for entry in committed if entry.name in students]
    result = chain_result(plan, entries)
    facts = _facts(plan, own, result, pods_run=pods_run)
    return ChainStatus(
        observed_generation=chain.metadata.generation,
        phase=facts.phase,
        stage=f"{len(committed) + len(skipped)}/{len(plan.stages)}",
        metric=(metric_of(models[-1], metric) or None) if models else None,
        message=facts.message,
        conditions=_conditions(
            facts,
            stalled=facts.phase == "Failed" or any(_is_stuck(entry) for entry in own),
            suspended=facts.phase == "Suspended" and not pods_run,
            exports=_exports_ready(plan, stages),
            evidence=evidence_ready(plan, facts.phase, evidence) if beside else None,
            previous=previous,
            generation=chain.metadata.generation,
            now=now,
        ),
        stages=stages,
        evidence=[entry for entry in evidence if entry.name in beside],
        result=result,
        started_at=previous.started_at,
        # Whoever builds a status from this plan has seen the request.
        handled_retry=annotated_retry(chain.metadata.annotations) or previous.handled_retry,
    )


def _is_stuck(entry: StageStatus) -> bool:
    """A pod waits for something that needs the user: the stage has not failed, but makes no progress."""
    return entry.phase not in ("Failed", "Committed") and entry.failure_class is not None


def _facts(plan: Plan, stages: Sequence[StageStatus], result: ChainResult | None, *, pods_run: bool) -> _Facts:
    # A failure comes first: it needs the user even while a later stage still runs or the chain is suspended.
    failed = next((entry for entry in stages if entry.phase == "Failed"), None)
    if failed is not None:
        reason = failed.failure_class or FailureClass.CRASHED
        return _Facts("Failed", str(reason), _of_stage(failed.name, failed.message or reason))
    waiting = next((entry for entry in stages if entry.phase != "Committed"), None)
    # A later stage may still run when the gate of an earlier one is tightened.
    current = next((entry for entry in stages if entry.phase == "Running"), waiting)
    if current is None:
        return _Facts("Succeeded", "Succeeded", _success(plan, stages, result))
    # A chain between two stages has started: Pending would look as if nothing had been done.
    is_new = current.phase != "Running" and current.admission != "Requeued"
    has_started = not is_new or any(entry.phase == "Committed" for entry in stages)
    phase: ChainPhase = "Suspended" if plan.chain.suspended_by else "Running" if has_started else "Pending"
    sentence = ": ".join(filter(None, (current.name, current.message)))
    # Before `Suspended`: a pod that does not stop on a lost node needs the user in a suspended chain too.
    if _is_stuck(current):
        return _Facts(phase, str(current.failure_class), sentence)
    if phase == "Suspended":
        stopping = f"stopping {current.name}: its state is being saved" if pods_run else plan.chain.suspended_by
        return _Facts(phase, "Suspended", stopping)
    if current.admission == "WaitingForTurn":
        return _Facts("Pending", current.admission, sentence)
    if current.admission in ("WaitingForPeer", "WaitingForQuota", "Requeued"):
        return _Facts(phase, current.admission, sentence)
    if current.phase == "Running":
        return _Facts(phase, "StageRunning", f"running {sentence}")
    return _Facts(phase, "StagePending", sentence)


def _exports_ready(plan: Plan, stages: Sequence[StageStatus]) -> Truth | None:
    """Whether every export is made that the spec asks for; None if it asks for none."""
    by_name = {entry.name: entry for entry in stages}
    entries = [by_name[planned.name] for planned in plan.stages if planned.work_order.export.name is not None]
    if not entries:
        return None
    missing = [(entry.name, entry.missing_export) for entry in entries if entry.missing_export]
    for name, export in missing:
        if export.phase == "Failed":
            # Without a Job, the API server refused it, and the operator tries again by itself.
            remedy = "; to try again: distillchain retry" if export.job else ""
            return Truth(False, "ExportFailed", f"{name}: {export.message}{remedy}")
    for name, export in missing:
        return Truth(False, "Exporting", ": ".join(filter(None, (name, export.message or "waiting to be exported"))))
    waiting = next((entry.name for entry in entries if entry.phase != "Committed"), None)
    if waiting is not None:
        return Truth(False, "StagePending", f"{waiting} is exported once it is committed")
    return Truth(True, "Exported", "every export is made")


def _of_stage(name: str, sentence: str) -> str:
    """The message with the stage's name in front, unless it begins with it."""
    # The trainer's sentences about gates name their stage already.
    return sentence if sentence.startswith(f"stage {name}") else f"{name}: {sentence}"


def _success(plan: Plan, stages: Sequence[StageStatus], result: ChainResult | None) -> str:
    if result is None:
        return "every stage is committed"
    last = stages[-1]
    kept = f", {result.retention} of the root teacher's" if result.retention else ""
    root, size = root_teacher(plan, stages), f"{result.compression} times fewer"
    if root is not None and result.parameters > root.parameters:
        size = f"{result.parameters / root.parameters:.1f} times as many"
    sentence = f"{last.name}: {plan.chain.spec.task.metric} {result.metric}{kept}, with {size} parameters"
    return f"{sentence}; it {last.message}" if last.message else sentence


def _conditions(
    facts: _Facts,
    *,
    stalled: bool,
    suspended: bool,
    exports: Truth | None,
    evidence: Truth | None,
    previous: ChainStatus,
    generation: int,
    now: datetime,
) -> list[Condition]:
    succeeded = facts.phase == "Succeeded"
    reconciling = facts.phase in ("Pending", "Running") or (facts.phase == "Suspended" and not suspended)
    own: dict[ConditionType, bool] = {
        "Ready": succeeded,
        # kstatus reads Reconciling as `still in progress`, so tools would wait for a chain that needs the user.
        "Reconciling": reconciling and not stalled,
        "Stalled": stalled,
        "Succeeded": succeeded,
        "Suspended": suspended,
    }
    truths: dict[ConditionType, Truth] = {
        kind: Truth(truth, facts.reason, facts.message) for kind, truth in own.items()
    }
    if exports is not None:
        truths["ExportsReady"] = exports
    if evidence is not None:
        truths["EvidenceReady"] = evidence
    before = {condition.type: condition for condition in previous.conditions}
    conditions = []
    for kind, truth in truths.items():
        status: Literal["True", "False"] = "True" if truth.is_true else "False"
        # By Kubernetes' convention the transition time follows `status` alone, not reason and message.
        old = before.get(kind)
        conditions.append(
            Condition(
                type=kind,
                status=status,
                reason=truth.reason,
                message=fit(truth.message, MESSAGE_BYTES),
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old and old.status == status else timestamp(now),
            )
        )
    return conditions


def invalid_status(faults: Sequence[str], *, generation: int, previous: ChainStatus, now: datetime) -> ChainStatus:
    """The status of a chain whose spec the API server accepted but the types refuse, with all faults.

    The entries of its stages are kept for when the spec is corrected.
    """
    facts = _Facts("Failed", INVALID_SPEC, fit("\n".join(faults), MESSAGE_BYTES))
    return previous.model_copy(
        update={
            "observed_generation": generation,
            "phase": facts.phase,
            "message": facts.message,
            # It is the result of the spec before.
            "result": None,
            "conditions": _conditions(
                facts,
                stalled=True,
                suspended=False,
                exports=_as_before(previous, "ExportsReady"),
                evidence=_as_before(previous, "EvidenceReady"),
                previous=previous,
                generation=generation,
                now=now,
            ),
        }
    )


def _as_before(previous: ChainStatus, kind: ConditionType) -> Truth | None:
    """A condition while the spec cannot be read."""
    found = next((condition for condition in previous.conditions if condition.type == kind), None)
    return None if found is None else Truth(found.status == "True", found.reason, found.message)


def with_entry(stages: Sequence[StageStatus], name: str, **changes: Any) -> list[StageStatus]:
    """`stages` with changes to the entry of one stage."""
    return [entry.model_copy(update=changes) if entry.name == name else entry for entry in stages]


def status_patch(status: ChainStatus) -> dict[str, Any]:
    """`status` as a merge patch: a removed field is null, or the API server would keep it."""
    document = status.to_document()
    patch = {_camel(name): document.get(_camel(name)) for name in ChainStatus.model_fields}
    # A merge patch also merges into objects, so the fields that `result` no longer has must be null as well. Lists
    # are replaced as a whole and need none.
    if status.result is not None:
        patch["result"] = status.result.model_dump(mode="json", by_alias=True)
    return patch


def _camel(name: str) -> str:
    return ChainStatus.model_fields[name].alias or name


def waits_for_turn(status: ChainStatus) -> bool:
    """Whether a status says that the chain waits for its turn."""
    return any(entry.admission == "WaitingForTurn" for entry in status.entries)
